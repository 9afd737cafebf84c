"""The one rule for thoughts, for every grader: what stands inside `<think>` is no answer."""


def answer_part(text: str) -> str | None:
    """What follows the last `</think>`, or the whole text where there is none; None: the thoughts never ended.

    Engines keep the tags in the text; where a server returns the reasoning apart, or a chat template has opened the
    thoughts in the prompt, the tags are put back before grading (`evals.engines.openai_api`, `evals.prompts`).
    """
    _, _, answer = text.rpartition("</think>")
    return None if "<think>" in answer else answer
