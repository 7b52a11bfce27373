"""The engine for servers: against a server of ours that fails on demand, and against a real one with a real model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from transformers import PreTrainedTokenizerFast

from include.generation import make_engine, openai_engine
from include.generation.openai_engine import OpenAIEngine, ServerRefusedError, ServerUnavailableError
from include.generation.runner import current_mode_hashes, plan_shards, row_seed, run_shard, sync_prompts
from include.generation.transformers_engine import TransformersEngine
from include.modes import MODES
from include.schema import BadInputError, LlmServer, Prompt, Response
from include.settings import Settings
from include.storage.generation import Scope
from include.storage.warehouse import Warehouse
from tests.include.generation.llm_server import Fault, Request, ServerState, running_server
from tests.ports import free_port

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
KEY = "sk-very-secret"


@pytest.fixture(scope="session")
def model_dir(make_tokenizer_dir: Callable[[str], Path]) -> Path:
    return make_tokenizer_dir(CHATML)


@pytest.fixture
def count(model_dir: Path) -> Callable[[str], int]:
    """Count a text's tokens, as a server with the same tokenizer does."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def server(model_dir: Path, count: Callable[[str], int]) -> Iterator[ServerState]:
    with running_server(ServerState(models=["other/model", str(model_dir)], count=count)) as state:
        yield state


@pytest.fixture
def make_engine_for(server: ServerState, model_dir: Path, tmp_path: Path) -> Callable[..., OpenAIEngine]:
    """Make an engine that asks our server, loaded unless told otherwise."""

    def make(load: bool = True, **values: Any) -> OpenAIEngine:
        settings = Settings(**{"engine": "openai", "home": tmp_path, "model_name": str(model_dir), **values})
        engine = make_engine(settings, server.server)
        assert isinstance(engine, OpenAIEngine)
        if load:
            engine.load()
        return engine

    return make


@pytest.fixture
def prompts(make_prompt: Callable[..., Prompt]) -> list[Prompt]:
    """Forty prompts; the server knows them by their seed."""
    return [make_prompt(user_message=f"sentence {seed}", seed=seed, sample=str(seed)) for seed in range(100, 140)]


def seeds(responses: Sequence[Response]) -> list[int]:
    return [response.prompt.seed for response in responses]


def test_without_a_server_it_says_what_to_set() -> None:
    with pytest.raises(BadInputError, match="Airflow connection llm_server"):
        make_engine(Settings(engine="openai"))


def test_every_prompt_is_answered_once_in_batches(
    make_engine_for: Callable[..., OpenAIEngine], prompts: list[Prompt], server: ServerState
) -> None:
    server.seconds = 0.01
    batches = list(make_engine_for(batch_size=16, server_concurrency=4).generate(prompts))
    responses = [response for batch in batches for response in batch]
    assert sorted(seeds(responses)) == [prompt.seed for prompt in prompts]
    assert all(16 <= len(batch) < 16 + 4 for batch in batches[:-1])
    for response in responses:
        assert (response.text, response.finish_reason) == (f"Answer {response.prompt.seed}.", "stop")
        assert response.response_tokens == 2


def test_the_server_gets_our_text_seed_and_sampling(
    make_engine_for: Callable[..., OpenAIEngine],
    make_prompt: Callable[..., Prompt],
    server: ServerState,
    model_dir: Path,
    count: Callable[[str], int],
) -> None:
    prompt = make_prompt("sift_ssp", "<audio><text>i got the job</text></audio>", seed=2**63 - 1)
    [[response]] = make_engine_for().generate([prompt])
    [request] = server.asked()
    text = (
        f"<|im_start|>system\n{MODES['sift_ssp'].system_prompt}<|im_end|>\n"
        "<|im_start|>user\n<audio><text>i got the job</text></audio><|im_end|>\n<|im_start|>assistant\n"
    )
    assert request.path == "/v1/completions"
    assert request.body == {
        "model": str(model_dir),
        "prompt": text,
        "temperature": 0.8,
        "top_p": 0.92,
        "top_k": 50,
        "repetition_penalty": 1.0,
        "max_tokens": 256,
        "seed": 2**63 - 1,
        "stop": ["<|im_end|>"],
        "skip_special_tokens": False,
        "add_special_tokens": False,
    }
    assert response.prompt_tokens == count(text)


@pytest.mark.parametrize("concurrency", [1, 5])
def test_never_more_requests_at_once_than_the_setting(
    make_engine_for: Callable[..., OpenAIEngine], prompts: list[Prompt], server: ServerState, concurrency: int
) -> None:
    server.seconds = 0.02
    engine = make_engine_for(server_concurrency=concurrency, batch_size=7)
    for _ in engine.generate(prompts):
        time.sleep(0.03)  # the caller stores; meanwhile no more are sent
    assert server.most_open == concurrency


def test_few_answers_of_a_slow_server_are_handed_on_in_time(
    make_engine_for: Callable[..., OpenAIEngine],
    prompts: list[Prompt],
    server: ServerState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_engine, "HAND_ON_AFTER_S", 0.3)
    server.fault = lambda request, before: Fault(None) if request.body.get("seed") == 105 else None
    batches = make_engine_for(server_concurrency=8).generate(prompts[:6])
    assert sorted(seeds(next(batches))) == [100, 101, 102, 103, 104]
    batches.close()


def test_retry_after_is_waited_for(
    make_engine_for: Callable[..., OpenAIEngine], prompts: list[Prompt], server: ServerState
) -> None:
    server.fault = lambda request, before: (
        Fault(429, headers={"Retry-After": "2"}) if request.body.get("seed") == 100 and not before else None
    )
    responses = list(chain(*make_engine_for().generate(prompts[:2])))
    assert sorted(seeds(responses)) == [100, 101]
    first, second = [request.at for request in server.asked() if request.body["seed"] == 100]
    assert 2 <= second - first < 4  # left to itself the client waits for 0.5 s at most


@pytest.mark.parametrize("fault", [Fault(500), Fault(503), Fault(0)])
def test_a_passing_failure_is_tried_again(
    make_engine_for: Callable[..., OpenAIEngine], prompts: list[Prompt], server: ServerState, fault: Fault
) -> None:
    server.fault = lambda request, before: fault if request.body.get("seed", 0) % 2 and before < 1 else None
    responses = list(chain(*make_engine_for().generate(prompts[:10])))
    assert sorted(seeds(responses)) == list(range(100, 110))
    assert len(server.asked()) == 15


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            Fault(500),
            ServerUnavailableError,
            "/completions for ravdess/105 .sift_s. answered 500, after up to 1 retries",
        ),
        (
            Fault(429, headers={"Retry-After": "3600"}),
            ServerUnavailableError,
            "answered 429, after up to 1 retries; it says Retry-After: 3600",
        ),
        (Fault(0), ServerUnavailableError, "/completions for ravdess/105 .sift_s.: Connection error"),
        (Fault(404), ServerRefusedError, "/completions for ravdess/105 .sift_s. answered 404, so it cannot be sent"),
        (Fault(401), ServerRefusedError, "refused the API key .401.: the password of the Airflow connection"),
    ],
)
def test_a_lasting_failure_ends_the_run_after_what_was_finished(
    make_engine_for: Callable[..., OpenAIEngine],
    prompts: list[Prompt],
    server: ServerState,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(openai_engine, "MAX_RETRIES", 1)

    def late(request: Request, before: int) -> Fault | None:
        seed = request.body.get("seed", 0)
        if seed == 105:
            time.sleep(0.2)  # the five before it are done
            return fault
        return Fault(None) if 105 < seed < 140 else None

    server.fault = late
    got: list[Response] = []
    with pytest.raises(error, match=message) as caught:
        for batch in make_engine_for(server_concurrency=6, batch_size=100).generate(prompts):
            got += batch
    assert sorted(seeds(got)) == [100, 101, 102, 103, 104]
    # A failure is shown with neither the server's words, which may quote a prompt, nor the client's error behind it.
    assert "own words" not in "".join(traceback.format_exception(caught.value))
    sent = len(server.asked())
    time.sleep(0.3)
    assert len(server.asked()) == sent <= 6 + 5 + 1  # nothing new was sent, and what hung was given up


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_the_server_will_not_read_does_not_stop_the_others(
    make_engine_for: Callable[..., OpenAIEngine], prompts: list[Prompt], server: ServerState, status: int
) -> None:
    server.fault = lambda request, before: Fault(status) if request.body.get("seed") in (100, 107) else None
    batches = list(make_engine_for(batch_size=5).generate(prompts))
    assert sorted(seeds(list(chain(*batches)))) == sorted(prompt.seed for prompt in prompts)
    refused = {(response.prompt.seed, response.text, response.finish_reason) for response in batches[-1]}
    assert refused == {(100, "", "refused"), (107, "", "refused")}
    assert all(response.finish_reason == "stop" for response in chain(*batches[:-1]))


def test_a_server_that_refuses_most_prompts_fails_the_run(
    make_engine_for: Callable[..., OpenAIEngine], prompts: list[Prompt], server: ServerState
) -> None:
    few = openai_engine.MOST_REFUSED
    engine = make_engine_for(server_concurrency=4, batch_size=4)
    server.fault = lambda request, before: Fault(400) if request.body.get("seed", 0) >= 100 else None
    with pytest.raises(ServerRefusedError, match=r"refused 1\d prompts, ravdess/1.* the first, and answered 0\."):
        list(engine.generate(prompts))
    assert few < len(server.asked()) < len(prompts), "it stops soon"
    # Few of them may all be wrong, and so may those that were refused before.
    for kept in (prompts[:few], [replace(prompt, attempt=2) for prompt in prompts]):
        assert {response.finish_reason for response in chain(*engine.generate(kept))} == {"refused"}


@pytest.mark.usefixtures("toy_corpus")
def test_a_prompt_that_is_never_read_is_given_up_and_counted(
    warehouse: Warehouse, make_engine_for: Callable[..., OpenAIEngine], server: ServerState
) -> None:
    server.answer = lambda request: ("I am so glad to hear it!", "stop")
    server.fault = lambda request, before: Fault(400) if "number 1." in str(request.body.get("prompt")) else None
    engine = make_engine_for(load=False)
    rows = generate_all(warehouse, engine, engine.settings)
    never = [row for row in rows if row["finish_reason"] == "refused"]
    assert {row["verdict"] for row in never} == {"refused_prompt"}
    assert {(row["mode"], row["attempt"]) for row in never} == {
        (mode, attempt) for mode in MODES for attempt in range(1, engine.settings.max_attempts + 1)
    }
    assert {row["sample_id"] for row in rows if row["verdict"] == "accepted"} - {row["sample_id"] for row in never}


def test_requests_under_way_are_cancelled_when_the_caller_stops(
    make_engine_for: Callable[..., OpenAIEngine], prompts: list[Prompt], server: ServerState
) -> None:
    server.fault = lambda request, before: Fault(None) if 104 < request.body.get("seed", 0) < 140 else None
    batches = make_engine_for(server_concurrency=8, batch_size=5).generate(prompts)
    assert len(next(batches)) == 5
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 2


def test_a_hanging_request_times_out_and_is_tried_again(
    make_engine_for: Callable[..., OpenAIEngine],
    prompts: list[Prompt],
    server: ServerState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_engine, "ANSWER_TIMEOUT_S", 0.5)
    server.fault = lambda request, before: Fault(None) if request.body.get("seed") == 100 and not before else None
    assert sorted(seeds(list(chain(*make_engine_for().generate(prompts[:3]))))) == [100, 101, 102]


def test_a_server_that_answers_nothing_fails_the_run(
    make_engine_for: Callable[..., OpenAIEngine],
    prompts: list[Prompt],
    server: ServerState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_engine, "NO_ANSWER_S", 0.5)
    server.fault = lambda request, before: Fault(None) if 100 <= request.body.get("seed", 0) < 140 else None
    with pytest.raises(ServerUnavailableError, match=r"has answered nothing for 0\.5 s"):
        list(make_engine_for().generate(prompts))


def test_a_cut_answer_is_length_and_the_stop_token_is_no_text(
    make_engine_for: Callable[..., OpenAIEngine], prompts: list[Prompt], server: ServerState
) -> None:
    endings = {100: ("So I", "length"), 101: ("Yes.<|im_end|>", "stop"), 102: ("Yes.", "eos_token"), 103: ("", "other")}
    server.answer = lambda request: endings.get(request.body["seed"], ("Hi.", "stop"))
    responses = {r.prompt.seed: (r.text, r.finish_reason) for r in chain(*make_engine_for().generate(prompts[:4]))}
    assert responses == {100: ("So I", "length"), 101: ("Yes.", "stop"), 102: ("Yes.", "stop"), 103: ("", "length")}


def test_the_sentence_limit_holds_for_a_server_too(
    make_engine_for: Callable[..., OpenAIEngine], prompts: list[Prompt], server: ServerState
) -> None:
    answers = {
        100: ("One. Two. Thr", "length"),
        101: ("One. Two.", "stop"),
        102: ("One.", "stop"),
        103: ("On", "length"),
    }
    server.answer = lambda request: answers.get(request.body["seed"], ("Hi.", "stop"))
    engine = make_engine_for(sampling={"stop_after_sentences": 1})
    responses = {r.prompt.seed: (r.text, r.finish_reason) for r in chain(*engine.generate(prompts[:4]))}
    assert responses == {
        100: ("One.", "sentences"),
        101: ("One.", "sentences"),
        102: ("One.", "stop"),
        103: ("On", "length"),
    }


def test_a_server_that_counts_nothing_is_counted_for(
    make_engine_for: Callable[..., OpenAIEngine],
    make_prompt: Callable[..., Prompt],
    server: ServerState,
    count: Callable[[str], int],
) -> None:
    server.count = None
    [[response]] = make_engine_for().generate([make_prompt(seed=7)])
    assert response.prompt_tokens == count(server.asked()[0].body["prompt"])
    assert response.response_tokens == count("Answer 7.") + 1


@pytest.mark.parametrize(
    ("models", "revision", "asked"),
    [
        (["{name}"], "main", "{name}"),
        (["{name}@v1", "{name}@main", "{name}"], "main", "{name}@main"),
        (["{name}@v1", "{name}"], "main", "{name}"),
        (["{name}@v1"], "0123abc", "{name}@v1"),
        ([], "main", "{name}"),  # `transformers serve` with a folder
    ],
)
def test_the_model_is_asked_for_as_the_server_lists_it(
    make_engine_for: Callable[..., OpenAIEngine],
    make_prompt: Callable[..., Prompt],
    server: ServerState,
    model_dir: Path,
    models: list[str],
    revision: str,
    asked: str,
) -> None:
    server.models = [name.format(name=model_dir) for name in models]
    list(make_engine_for(model_revision=revision).generate([make_prompt()]))
    assert server.asked()[0].body["model"] == asked.format(name=model_dir)


@pytest.mark.parametrize("models", [["other/model"], ["{name}@v1", "{name}@v2"]])
def test_another_model_is_refused_naming_what_is_served(
    make_engine_for: Callable[..., OpenAIEngine], server: ServerState, model_dir: Path, models: list[str]
) -> None:
    server.models = [name.format(name=model_dir) for name in models]
    with pytest.raises(ServerRefusedError, match="does not serve") as error:
        make_engine_for()
    assert str(model_dir) in str(error.value) and server.models[0] in str(error.value)
    assert "SIFT_MODEL_NAME" in str(error.value)
    assert [request.path for request in server.requests] == ["/v1/models"]


def test_a_server_that_answers_as_another_model_is_refused(
    make_engine_for: Callable[..., OpenAIEngine], server: ServerState
) -> None:
    server.answers_as = "cheaper/model"
    with pytest.raises(ServerRefusedError, match="answered as 'cheaper/model'"):
        make_engine_for()


def test_a_server_without_completions_is_refused_and_says_the_way_out(
    make_engine_for: Callable[..., OpenAIEngine], server: ServerState
) -> None:
    server.endpoints = ("/v1/chat/completions",)
    with pytest.raises(ServerRefusedError, match="/completions answered 404, so it cannot be sent prompts") as error:
        make_engine_for()
    assert "SIFT_SERVER_CHAT=true" in str(error.value)


def test_by_an_explicit_setting_the_server_renders_the_prompt(
    make_engine_for: Callable[..., OpenAIEngine], make_prompt: Callable[..., Prompt], server: ServerState
) -> None:
    server.endpoints = ("/v1/chat/completions",)
    [[response]] = make_engine_for(server_chat=True).generate([make_prompt(seed=5)])
    [request] = server.asked()
    assert request.path == "/v1/chat/completions"
    assert request.body["messages"] == [
        {"role": "system", "content": MODES["sift_s"].system_prompt},
        {"role": "user", "content": "i got the job"},
    ]
    assert request.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "prompt" not in request.body and "add_special_tokens" not in request.body
    assert (response.text, request.body["seed"]) == ("Answer 5.", 5)


def test_a_server_that_refuses_unknown_fields_gets_a_generation_config(
    make_engine_for: Callable[..., OpenAIEngine], make_prompt: Callable[..., Prompt], server: ServerState
) -> None:
    server.strict = True
    [[response]] = make_engine_for().generate([make_prompt()])
    [request] = server.asked()
    assert response.text == "Answer 1."
    assert (
        '"top_k": 50' in request.body["generation_config"] and '"do_sample": true' in request.body["generation_config"]
    )


@pytest.mark.parametrize("added", [1, 20, -3])
def test_a_server_that_reads_another_prompt_is_refused(
    make_engine_for: Callable[..., OpenAIEngine], server: ServerState, count: Callable[[str], int], added: int
) -> None:
    server.count = lambda text: count(text) + added
    with pytest.raises(ServerRefusedError, match=r"reads \d+ tokens where the prompt has \d+") as error:
        make_engine_for()
    assert "another prompt" in str(error.value)


def test_a_bos_that_template_and_server_both_write_is_written_once(
    make_tokenizer_dir: Callable[[str], Path],
    make_engine_for: Callable[..., OpenAIEngine],
    make_prompt: Callable[..., Prompt],
    server: ServerState,
    count: Callable[[str], int],
) -> None:
    folder = make_tokenizer_dir("{{ bos_token }}" + CHATML)
    server.models = [str(folder)]
    # A token more in front, whatever it is sent, as of a server that passes over add_special_tokens.
    server.count = lambda text: count(text.removeprefix("<s>")) + (2 if text.startswith("<s>") else 1)
    list(make_engine_for(model_name=str(folder)).generate([make_prompt()]))
    assert server.asked()[0].body["prompt"].startswith("<|im_start|>system")


def test_a_wrong_address_is_said(make_engine_for: Callable[..., OpenAIEngine], server: ServerState) -> None:
    url = server.server.url
    server.server = LlmServer(url.removesuffix("/v1"))
    with pytest.raises(ServerRefusedError, match=r"/models answered 404; the URL .* usually ends in /v1"):
        make_engine_for()


def test_no_server_at_all_is_said(
    make_engine_for: Callable[..., OpenAIEngine], server: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_engine, "MAX_RETRIES", 0)
    server.server = LlmServer("http://127.0.0.1:9/v1")  # the port of "discard", where nothing listens
    with pytest.raises(ServerUnavailableError, match="Is the server up, and the host of the Airflow connection"):
        make_engine_for()


def test_the_key_is_sent_and_never_shown(
    make_engine_for: Callable[..., OpenAIEngine],
    prompts: list[Prompt],
    server: ServerState,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.key = KEY
    server.server = LlmServer(server.server.url, KEY)
    caplog.set_level("DEBUG")
    engine = make_engine_for()
    assert len(list(chain(*engine.generate(prompts)))) == 40
    assert {request.key for request in server.requests} == {KEY}
    server.fault = lambda request, before: Fault(400, f"bad request by {KEY}") if request.body else None
    shown = [repr(engine.server), engine.device]
    with pytest.raises(ServerRefusedError, match=r"answered 400: .*bad request by \*\*\*") as refused:
        engine.load()
    shown += traceback.format_exception(refused.value)
    server.key, server.fault = "another", lambda request, before: None
    with pytest.raises(ServerRefusedError, match="refused the API key") as rejected:
        engine.load()
    shown += traceback.format_exception(rejected.value)
    assert KEY not in "".join(shown) + caplog.text
    assert "sentence 101" not in "".join(record.getMessage() for record in caplog.records if record.levelno >= 20)


def test_an_api_key_of_the_users_own_is_not_sent_along(
    make_engine_for: Callable[..., OpenAIEngine], server: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    make_engine_for()
    assert {request.key for request in server.requests} == {"none"}


def generate_all(warehouse: Warehouse, engine: OpenAIEngine, settings: Settings, **scope: Any) -> list[dict[str, Any]]:
    """Run all that is pending of the toy corpus; returns every text that was stored, accepted or not."""
    hashes = current_mode_hashes(settings, list(MODES))
    sync_prompts(warehouse, ["toy"], hashes)
    work = plan_shards(warehouse, Scope(sources=["toy"], max_attempts=settings.max_attempts, **scope), hashes)
    for shard in chain(*work.values()):
        run_shard(warehouse, engine, settings, shard, "run")
    with warehouse.connection() as connection:
        columns = "sample_id, mode, response, finish_reason, seed, attempt, engine, prompt_tokens, verdict"
        query = f"select {columns} from generation.responses union all select {columns} from generation.attempts"
        return connection.execute(query).fetchall()


@pytest.mark.usefixtures("toy_corpus")
def test_a_run_records_the_engine_and_the_seeds_that_were_sent(
    warehouse: Warehouse, make_engine_for: Callable[..., OpenAIEngine], server: ServerState
) -> None:
    server.answer = lambda request: ("I am so glad to hear it!", "stop")
    engine = make_engine_for(load=False)
    rows = generate_all(warehouse, engine, engine.settings)
    accepted = [row for row in rows if row["verdict"] == "accepted"]
    assert {row["mode"] for row in accepted} == {"sift_s", "sift_ssp"}
    assert {row["verdict"] for row in rows if row["mode"] == "sit_ssp"} == {"not_sounds_like"}
    assert {row["engine"] for row in rows} == {"openai"}
    assert {row["seed"] for row in rows} == {request.body["seed"] for request in server.asked()}
    assert all(row["seed"] == row_seed(0, row["sample_id"], row["mode"], row["attempt"]) for row in rows)


@pytest.mark.usefixtures("toy_corpus")
def test_answers_that_came_before_a_failure_are_stored(
    warehouse: Warehouse,
    make_engine_for: Callable[..., OpenAIEngine],
    server: ServerState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_engine, "MAX_RETRIES", 0)
    server.answer = lambda request: ("Sounds like a happy woman.", "stop")
    server.fault = lambda request, before: Fault(500) if len(server.asked()) > 5 else None
    engine = make_engine_for(load=False, server_concurrency=1)
    with pytest.raises(ServerUnavailableError, match="answered 500"):
        generate_all(warehouse, engine, engine.settings)
    with warehouse.connection() as connection:
        stored = connection.execute("select count(*) as rows from generation.attempts").fetchall()
    assert stored == [{"rows": 5}]


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_server(small_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmServer]:
    """`transformers serve` with the real small model, on this machine."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "hub").mkdir()
    port = free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", small_model_dir, "--host", "127.0.0.1"]
    environment = {**os.environ, "HF_HOME": str(folder), "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"], stdout=log, stderr=log, env=environment
        )
        try:
            deadline = time.monotonic() + 120
            while not _is_up(port):
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
            yield LlmServer(f"http://127.0.0.1:{port}/v1")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _is_up(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def real_settings(small_model_dir: Path, **sampling: Any) -> Settings:
    greedy = {"temperature": 0, "repetition_penalty": 1, "max_new_tokens": 16, "stop_after_sentences": 0}
    values = {"model_name": str(small_model_dir), "sampling": {**greedy, **sampling}}
    return Settings(profile="embedded", engine="openai", server_concurrency=2, max_attempts=1, **values)


CLIP = "<audio><meta>gender: female, emotion: happy</meta><text>the tomatoes are ripe</text></audio>"


@pytest.mark.slow
@pytest.mark.model
def test_a_real_server_reads_our_prompt_and_writes_what_our_own_engine_writes(
    real_server: LlmServer, small_model_dir: Path, make_prompt: Callable[..., Prompt]
) -> None:
    settings = real_settings(small_model_dir)
    prompts = [
        make_prompt("sift_s", "the tomatoes are ripe"),
        make_prompt("sift_ssp", CLIP),
        make_prompt("sit_ssp", CLIP),
    ]
    engine = OpenAIEngine(settings, real_server)
    engine.load()
    theirs = {response.prompt.mode: response for response in chain(*engine.generate(prompts))}
    own_engine = TransformersEngine(settings.model_copy(update={"engine": "transformers"}))
    own_engine.load()
    ours = {response.prompt.mode: response for response in chain(*own_engine.generate(prompts))}
    assert set(theirs) == set(MODES)
    for mode, response in theirs.items():
        assert response.prompt_tokens == ours[mode].prompt_tokens
        assert response.text == ours[mode].text
        assert (response.finish_reason, response.response_tokens) == (
            ours[mode].finish_reason,
            ours[mode].response_tokens,
        )


@pytest.mark.model
@pytest.mark.slow
def test_a_real_server_samples_by_our_settings_and_seed(
    real_server: LlmServer, small_model_dir: Path, make_prompt: Callable[..., Prompt]
) -> None:
    settings = real_settings(small_model_dir, temperature=1.5, top_p=1)
    engine = OpenAIEngine(settings.model_copy(update={"server_concurrency": 1}), real_server)
    engine.load()
    texts = [
        [response.text for response in chain(*engine.generate([make_prompt(seed=seed)]))] for seed in (1, 2, 2**62, 1)
    ]
    assert texts[0] == texts[3]  # this server, asked one thing at a time, does draw from the seed
    assert len({text for [text] in texts}) == 3


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures("toy_corpus")
def test_a_whole_run_on_a_real_server(warehouse: Warehouse, real_server: LlmServer, small_model_dir: Path) -> None:
    settings = real_settings(small_model_dir, stop_after_sentences=1)
    rows = generate_all(warehouse, OpenAIEngine(settings, real_server), settings, max_samples=1)
    assert sorted(row["mode"] for row in rows) == [*MODES]
    assert {(row["engine"], row["attempt"]) for row in rows} == {("openai", 1)}
    assert all(row["response"] and row["prompt_tokens"] > 20 for row in rows)
    assert all(row["seed"] == row_seed(0, row["sample_id"], row["mode"], 1) for row in rows)
    with warehouse.connection() as connection:
        progress = connection.execute("select status, device from generation.runs").fetchall()
    assert {(row["status"], row["device"]) for row in progress} == {("done", real_server.url)}


@pytest.mark.model
def test_a_real_server_that_has_another_model_refuses(
    real_server: LlmServer, model_dir: Path, small_model_dir: Path
) -> None:
    settings = real_settings(small_model_dir).model_copy(update={"model_name": str(model_dir)})
    with pytest.raises(ServerRefusedError, match=r"answered 400: .*pinned"):
        OpenAIEngine(settings, real_server).load()


@pytest.mark.model
@pytest.mark.slow
def test_a_real_server_renders_the_chat_itself_when_told(
    real_server: LlmServer, small_model_dir: Path, make_prompt: Callable[..., Prompt]
) -> None:
    engine = OpenAIEngine(real_settings(small_model_dir).model_copy(update={"server_chat": True}), real_server)
    engine.load()
    [[response]] = engine.generate([make_prompt()])
    own_engine = OpenAIEngine(real_settings(small_model_dir), real_server)
    own_engine.load()
    [[ours]] = own_engine.generate([make_prompt()])
    # This model's template prints no date, so both are the same prompt.
    assert (response.text, response.prompt_tokens) == (ours.text, ours.prompt_tokens)
