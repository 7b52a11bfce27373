"""HeySQuAD: questions of SQuAD, spoken by people, with the answers that a text holds.

71,990 spoken questions in train, 4,158 in validation. English of native and other speakers.

- Hub: fixie-ai/HeySQuAD_human, config default, split train, 71,990 rows
- Licence: CC BY 4.0
- Home: https://huggingface.co/datasets/yijingwu/HeySQuAD_human

A row: id 5726487b5951b619008f6ee1, transcription "who wanted israel to withdraw from its border", context (a
paragraph of Wikipedia), answers [{text: "Ted Heath", answer_start: 515}], is_impossible false.

Quirks: `answers` is a list of structs, unlike SQuAD's struct of lists; questions that the text does not answer are
marked is_impossible and have no answers; their plausible_answers are wrong ones and never used.
"""

from include.sources.recipe import Rejection, SourceRecipe, first_answer, text

RECIPE = SourceRecipe(
    name="heysquad",
    title="HeySQuAD (human)",
    repository="fixie-ai/HeySQuAD_human",
    key="id",
    fields={"text": text("transcription"), "answer": first_answer("answers")},
    reject_if=(Rejection("impossible question", "is_impossible"),),
    licence="CC-BY-4.0",
    redistributable=True,
    url="https://huggingface.co/datasets/yijingwu/HeySQuAD_human",
    citation=(
        "Y. Wu, S. Rallabandi, R. Srinivasamurthy, P. P. Dakle, A. Gon and P. Raghavan, HeySQuAD: A Spoken "
        "Question Answering Dataset, arXiv:2304.13689, 2023"
    ),
    task="answer",
    expected_rows=71_990,
    max_rows=140_000,
    # A third of SQuAD 2.0's questions have no answer.
    max_reject_share=0.5,
    schedule="40 4 * * 0",
)
