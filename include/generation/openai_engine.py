"""The engine that asks a server which speaks the OpenAI API: vLLM, SGLang, TGI, `transformers serve`.

We render the prompt and send its text to `/v1/completions`: a server that renders the chat template itself prints
today's date into it, and the prompt would be another one every day.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from include.generation.answer import sentence_end
from include.generation.rendering import PromptRenderer, load_tokenizer, messages_of
from include.schema import BadInputError, FinishReason, LlmServer, Prompt, Response
from include.settings import Settings

log = logging.getLogger(__name__)

# The client waits between retries as long as Retry-After says, up to two minutes, else 0.5 s to 8 s: 24 s for six.
MAX_RETRIES = 6
CONNECT_TIMEOUT_S = 10.0
# A full queue, or a model that is loaded with the first request, takes minutes.
ANSWER_TIMEOUT_S = 480.0
# With requests under way and no answer for so long, the server hangs: more retries would only hide it. Less than the
# watchdog's patience (SIFT_STALL_TIMEOUT_S), which ends the task without naming the server.
NO_ANSWER_S = 540.0
# Answers are handed on after so many seconds even if they are few, so that a slow server's are stored too.
HAND_ON_AFTER_S = 10.0

# Prompts that a server may refuse one by one, beyond as many as it answers; more are the fault of a setting.
MOST_REFUSED = 10

_AGAIN_LATER = (408, 409, 429)
_NOT_THIS_PROMPT = (400, 413, 422)
_ENDED_BY_MODEL = ("stop", "eos_token", "stop_sequence")  # OpenAI's word, and two of TGI's


class ServerRefusedError(BadInputError):
    """The server will not answer until its address, the key, the model or a setting is changed."""


class ServerUnavailableError(ConnectionError):
    """The server could not be reached, or failed; it may work later."""


class OpenAIEngine:
    """Keeps a bounded number of requests under way, and hands answers on as they come.

    How a server draws from the seed is its own affair: the same seed gives the same answer on one server at best.

    Attributes:
        name: "openai".
        device: The server's URL, without credentials.
        tokenizer: The model's tokenizer, after `load()`: prompts are rendered and counted here.
    """

    name = "openai"

    def __init__(self, settings: Settings, server: LlmServer) -> None:
        """Remember settings and server; nothing is asked.

        Args:
            settings: Model, revision, sampling, batch size, frozen date and what starts with `server_` count.
            server: Where to ask, and with which key.
        """
        self.settings = settings
        self.server = server
        self.device = server.url
        self.tokenizer: Any = None
        self._openai: Any = None  # the client package
        self._renderer: PromptRenderer | None = None
        self._path = "/chat/completions" if settings.server_chat else "/completions"
        self._model_id = settings.model_name
        self._extra: dict[str, Any] = {}
        self._servers_bos = ""  # what the server puts in front of every prompt, so that we must not

    def load(self) -> None:
        """Load the tokenizer, find the model on the server, and learn from one token what the server understands.

        Raises:
            ServerRefusedError: If the server refuses the key, does not serve the model, lacks the endpoint, or reads
                other tokens than those of the prompt.
            ServerUnavailableError: If it cannot be reached, or fails.
            ValueError: If the tokenizer cannot be had, naming the model and what to do.
        """
        import openai

        self._openai = openai
        for name in ("httpx", "httpx2"):  # a line per request, tens of thousands in a task's log
            logging.getLogger(name).setLevel(logging.WARNING)
        self.tokenizer = load_tokenizer(self.settings)
        self._renderer = PromptRenderer(self.tokenizer, self.settings.frozen_date)
        asyncio.run(self._get_acquainted())
        log.info(
            "asking %s%s for %s, %d at once; that it runs revision %s in %s is for its operator to see to",
            *(self.server.url, self._path, self._model_id, self.settings.server_concurrency),
            *(self.settings.model_revision, self.settings.dtype),
        )

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Response]]:
        """Answer P prompts, at most `settings.server_concurrency` at a time.

        Requests go on at the server while the caller stores what it was handed; those under way when the caller stops,
        or when one fails for good, are cancelled. A prompt that the server will not read is answered by finish_reason
        "refused", last of all: by then it is known whether others are read.

        Yields:
            Lists of about `settings.batch_size` responses in the order in which they came; P in all. Before an error
            is raised, whatever has come until then.

        Raises:
            ServerRefusedError: If the server refuses the key, the path or the model, or most prompts.
            ServerUnavailableError: If a request still failed after all retries, or if nothing was answered for
                NO_ANSWER_S seconds.
        """
        todo = iter(prompts)
        running: set[asyncio.Task[Response]] = set()
        refused: list[Response] = []
        answered = 0
        with asyncio.Runner() as runner:
            client = self._client()
            try:
                while True:
                    batch, error = runner.run(self._next_batch(client, todo, running))
                    if answers := [response for response in batch if response.finish_reason != "refused"]:
                        answered += len(answers)
                        yield answers
                    if error is not None:
                        raise error
                    refused += [response for response in batch if response.finish_reason == "refused"]
                    self._check_refused(refused, answered, len(running))
                    if not batch:
                        break
            finally:
                runner.run(_end(client, running))
        if refused:
            yield refused

    def _check_refused(self, refused: Sequence[Response], answered: int, waiting: int) -> None:
        """Refuse to go on if far more prompts are refused than are answered, or may be yet."""
        # A prompt that is tried again was refused before, alone among others: that says nothing new of the server.
        first = [response for response in refused if response.prompt.attempt == 1]
        if len(first) > MOST_REFUSED + answered + waiting:
            example = first[0].prompt
            raise ServerRefusedError(
                f"{self.server.url}{self._path} refused {len(first)} prompts, {example.sample_id} ({example.mode}) the "
                f"first, and answered {answered}. Its longest context, or a setting of ours, does not fit; its own log "
                "says which"
            )

    async def _next_batch(
        self, client: Any, todo: Iterator[Prompt], running: set[asyncio.Task[Response]]
    ) -> tuple[list[Response], BaseException | None]:
        """Wait for a batch of answers while the window is kept full; the first failure ends it early."""
        batch: list[Response] = []
        failure: BaseException | None = None
        loop = asyncio.get_running_loop()
        hand_on_at = loop.time() + HAND_ON_AFTER_S
        while len(batch) < self.settings.batch_size and failure is None:
            for prompt in islice(todo, self.settings.server_concurrency - len(running)):
                running.add(asyncio.create_task(self._answer(client, prompt)))
            if not running:
                break
            patience = max(0.0, hand_on_at - loop.time()) if batch else NO_ANSWER_S
            ended, _ = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not ended:
                if not batch:
                    failure = ServerUnavailableError(f"{self.server.url} has answered nothing for {NO_ANSWER_S:g} s")
                break
            running -= ended
            for task in ended:
                if error := task.exception():
                    failure = failure or error
                else:
                    batch.append(task.result())
        return batch, failure

    def _client(self) -> Any:
        return self._openai.AsyncOpenAI(
            base_url=self.server.url,
            api_key=self.server.api_key or "none",  # without one the client would look for OPENAI_API_KEY
            max_retries=MAX_RETRIES,
            timeout=self._openai.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )

    async def _get_acquainted(self) -> None:
        """Find the model, then ask for one token: it shows which fields the server takes, and what it reads."""
        async with self._client() as client:
            try:
                listing = await client.get("/models", cast_to=object)
            except self._openai.APIError as error:
                raise self._explained(error, "/models") from None
            self._model_id = self._served_model(listing)
            self._extra = self._extra_fields()
            read = await self._probe(client)
            if self.settings.server_chat or read is None:
                return  # it renders the prompt itself, or does not say what it has read
            rendered, bos = self._render(_PROBE), self.tokenizer.bos_token
            ours = self._count(rendered)
            if read == ours + 1 and bos and rendered.startswith(bos):
                self._servers_bos = bos  # the template wrote it, and the server another one in front of it
                read = await self._probe(client)
            if read != ours:
                raise ServerRefusedError(
                    f"{self.server.url} reads {read} tokens where the prompt has {ours}: it puts special tokens or a "
                    f"chat template of its own around it, or has another tokenizer than {self.settings.model_name!r}; "
                    "its answers would be answers to another prompt"
                )

    def _served_model(self, listing: Any) -> str:
        """The id under which the server lists our model."""
        data = listing.get("data") if isinstance(listing, dict) else None
        if not isinstance(data, list):
            raise ServerRefusedError(
                f"{self.server.url}/models is not an answer of the OpenAI API; the URL of the Airflow connection "
                "llm_server usually ends in /v1"
            )
        served = [str(entry.get("id")) for entry in data]
        name = self.settings.model_name
        if not served:  # `transformers serve` does not list a folder; it refuses whatever is not its model
            return name
        for wanted in (f"{name}@{self.settings.model_revision}", name):
            if wanted in served:
                return wanted
        revisions = [model for model in served if model.startswith(f"{name}@")]
        if len(revisions) == 1:  # a branch, most likely, where we have the commit
            return revisions[0]
        raise ServerRefusedError(
            f"{self.server.url} does not serve {name!r}; it serves {', '.join(served[:20])}. SIFT_MODEL_NAME must be "
            "one of its names, and SIFT_MODEL_REVISION one of its revisions where it lists them"
        )

    def _extra_fields(self) -> dict[str, Any]:
        """Fields beyond OpenAI's that vLLM, SGLang and TGI understand, or pass over."""
        sampling = self.settings.sampling
        fields: dict[str, Any] = {
            "top_k": sampling.top_k or -1,  # 0 is refused by some; -1 means all to all of them
            "repetition_penalty": sampling.repetition_penalty,
            "skip_special_tokens": False,  # left visible, so that leaks can be judged
        }
        if self.tokenizer.eos_token:
            fields["stop"] = [self.tokenizer.eos_token]  # a base model's config may end at another token
        if self.settings.server_chat:
            return {**fields, "chat_template_kwargs": {"enable_thinking": False}}
        return {**fields, "add_special_tokens": False}  # the template has written them already

    def _transformers_serve_fields(self) -> dict[str, Any]:
        """The same for `transformers serve`: it refuses unknown fields, and takes a whole generation config instead.

        Without one it samples as the model's own config says, which may be not at all.
        """
        sampling = self.settings.sampling
        config = {
            "do_sample": sampling.temperature > 0,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
        }
        fields: dict[str, Any] = {"generation_config": json.dumps(config)}
        if self.settings.server_chat:
            fields["chat_template_kwargs"] = {"enable_thinking": False}
        return fields

    async def _probe(self, client: Any) -> int | None:
        """Ask for one token.

        Returns:
            Tokens of the prompt as the server counts them; None if it does not say.
        """
        try:
            answer = await self._post(client, _PROBE, self._render(_PROBE), max_tokens=1)
        except self._openai.UnprocessableEntityError as error:
            if "Unexpected fields" not in str(error.body) or "generation_config" in self._extra:
                raise self._explained(error, self._path, quote=True) from None
            self._extra = self._transformers_serve_fields()
            return await self._probe(client)
        except self._openai.APIError as error:
            raise self._explained(error, self._path, quote=True) from None
        wrote = str(answer.get("model") or self._model_id) if isinstance(answer, dict) else self._model_id
        if wrote.partition("@")[0] != self._model_id.partition("@")[0]:
            raise ServerRefusedError(f"{self.server.url} was asked for {self._model_id!r} and answered as {wrote!r}")
        self._response(_PROBE, "", answer)  # raises if there is no answer in it
        return (answer.get("usage") or {}).get("prompt_tokens")

    def _render(self, prompt: Prompt) -> str:
        assert self._renderer is not None, "load() comes first"
        return self._renderer.render(prompt).removeprefix(self._servers_bos)

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    async def _post(self, client: Any, prompt: Prompt, rendered: str, max_tokens: int) -> Any:
        """Send one request; returns the JSON value that is answered."""
        asked = {"messages": messages_of(prompt)} if self.settings.server_chat else {"prompt": rendered}
        body = {
            "model": self._model_id,
            **asked,
            "temperature": self.settings.sampling.temperature,
            "top_p": self.settings.sampling.top_p,
            "max_tokens": max_tokens,
            "seed": prompt.seed,
            **self._extra,
        }
        return await client.post(self._path, cast_to=object, body=body)

    async def _answer(self, client: Any, prompt: Prompt) -> Response:
        """Ask for one prompt's answer."""
        rendered = self._render(prompt)
        try:
            answer = await self._post(client, prompt, rendered, self.settings.sampling.max_new_tokens)
        except self._openai.APIError as error:
            if getattr(error, "status_code", None) in _NOT_THIS_PROMPT:
                return Response(prompt, "", "refused", self._count(rendered), 0)
            # Nothing of the server's own words here, nor the client's error behind ours: they may quote the prompt.
            raise self._explained(error, f"{self._path} for {prompt.sample_id} ({prompt.mode})") from None
        return self._response(prompt, rendered, answer)

    def _response(self, prompt: Prompt, rendered: str, answer: Any) -> Response:
        """Read the server's answer; an end that is not the model's own counts as cut."""
        try:
            choice = answer["choices"][0]
            text = (choice["message"]["content"] if self.settings.server_chat else choice["text"]) or ""
        except (KeyError, IndexError, TypeError):
            raise ServerUnavailableError(f"{self.server.url}{self._path} answered without an answer") from None
        finish_reason: FinishReason = "stop" if choice.get("finish_reason") in _ENDED_BY_MODEL else "length"
        if finish_reason == "stop" and self.tokenizer.eos_token:
            text = text.removesuffix(self.tokenizer.eos_token)
        usage = answer.get("usage") or {}
        prompt_tokens = usage.get("prompt_tokens") or self._count(rendered)
        response_tokens = usage.get("completion_tokens") or self._count(text) + (finish_reason == "stop")
        if sentences := self.settings.sampling.stop_after_sentences:
            end = sentence_end(text, sentences, finished=True)
            if end is not None and (finish_reason == "length" or text[end:].strip()):
                text, finish_reason = text[:end], "sentences"
        return Response(prompt, text, finish_reason, prompt_tokens, response_tokens)

    def _explained(self, error: Any, asked: str, *, quote: bool = False) -> Exception:
        """Make the client's error one of ours: who failed at what, and whether it is worth another try."""
        status = getattr(error, "status_code", None)
        if status is None:
            return ServerUnavailableError(
                f"{self.server.url}{asked}: {error.message} Is the server up, and the host of the Airflow connection "
                "llm_server right?"
            )
        if status in (401, 403):
            return ServerRefusedError(
                f"{self.server.url} refused the API key ({status}): the password of the Airflow connection llm_server"
            )
        answered = f"{self.server.url}{asked} answered {status}"
        if status >= 500 or status in _AGAIN_LATER:
            wait = error.response.headers.get("retry-after")
            return ServerUnavailableError(
                f"{answered}, after up to {MAX_RETRIES} retries" + (f"; it says Retry-After: {wait}" if wait else "")
            )
        if asked == "/models":
            return ServerRefusedError(f"{answered}; the URL of the Airflow connection llm_server usually ends in /v1")
        if status in (404, 405) and not self.settings.server_chat:
            return ServerRefusedError(
                f"{answered}, so it cannot be sent prompts as we render them. SIFT_SERVER_CHAT=true asks through "
                "/chat/completions instead: the server then renders them with its own date, and all that it writes "
                "counts as another model's"
            )
        if not quote:
            return ServerRefusedError(answered)
        # The client's own message leaves out what is not in OpenAI's form.
        words = str(error.body or error.message).replace(self.server.api_key or "\0", "***")
        return ServerRefusedError(f"{answered}: {words[:300]}")


# What is asked to get acquainted: no sample's text, since a server's complaint may quote it.
_PROBE = Prompt("", "", "", "", "You are friendly.", "Hello!", attempt=1, seed=1)


async def _end(client: Any, running: set[asyncio.Task[Response]]) -> None:
    """Cancel what is under way, and hang up."""
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await client.close()
