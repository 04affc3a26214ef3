"""What of an answer is said in the speaker's own voice: not thought, quoted, reported, played or written for others?"""

import re

from safetyheads.judges.wording import fold

_THINK = r"(?:think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis)"
_OPEN = rf"<\|?{_THINK}\|?>|\[{_THINK}\]|◁think▷|<\|channel\|>analysis(?:<\|message\|>)?|<\|begin_of_thought\|>"
_CLOSE = (
    rf"</{_THINK}>|<\|/{_THINK}\|>|\[/{_THINK}\]|◁/think▷|<\|channel\|>final(?:<\|message\|>)?"
    r"|<\|end_of_thought\|>"
)
_THOUGHT_ENDS = re.compile(rf"^.*(?:{_CLOSE})", re.IGNORECASE | re.DOTALL)
_THOUGHT_BEGINS = re.compile(rf"(?:{_OPEN}).*$", re.IGNORECASE | re.DOTALL)
_FRAME = re.compile(r"</?(?:answer|response|output|final)>|<\|[\w/]{1,30}\|>", re.IGNORECASE)


def spoken(answer: str) -> str:
    """An answer without the thinking before it; empty if the thought does not end.

    Templates often write the opening tag themselves, so that a closing one may stand alone.

    >>> spoken("<think>Can I? I can't.</think> Sure!"), spoken("Hm, no.</think>Sure!"), spoken("<think>Let me see")
    ('Sure!', 'Sure!', '')
    """
    after = _THOUGHT_BEGINS.sub("", _THOUGHT_ENDS.sub("", answer))
    return _FRAME.sub(" ", after).strip()


_SAID = (
    r"(?:said|says|replied|replies|answered|whispered|shouted|yelled|cried|wrote|responded"
    r"|muttered|sighed|insisted"
    r"|(?:told|tells) \w+|asked|announced|sagte|sagt|antwortete|rief|flüsterte|dijo|dice"
    r"|respondió|contestó|dit"
    r"|répondit|répond|a dit|a répondu)"
)
_WORDS_OF_OTHERS = [
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"'''[\s\S]*?(?:'''|\Z)",  # a fence of code, folded
        r"^\s*>.*$",
        r'"[^"]*(?:"|\Z)',
        r"「[^」]*(?:」|\Z)|『[^』]*(?:』|\Z)",
        r"(?:(?<=^)|(?<=[\s(:,]))'(?=\w)[^\n]{1,300}?(?<=[.,!?])'(?=\s|$|[.,;)])",
        # He said that I cannot. The sign reads: I cannot. You could say: I cannot.
        rf"\b(?!(?:i|we|ich|yo|je) )\w+ {_SAID},? (?:that |dass |que )[^.!?\n]*",
        rf"\b(?!(?:i|we|ich|yo|je) )\w+ {_SAID}(?: [^.!?:\n]{{0,30}})?: ?[^\n]*",
        rf"\b(?!(?:i|we|ich|yo|je) )\w+ {_SAID},? (?=(?:i|we|ich|yo|je|no)\b)[^.!?\n]*",
        r"(?<!n't )(?<!not )\b(?:say|saying|write|reply|reads?|means?|example|for instance"
        r"|phrase|template|sentence|line"
        r"|sagen|decir|dire)"
        r"(?: [^.!?:\n]{0,30})?: ?[^\n]*",
        r"(?:说|說|道|回答|答道|写道)[:：][^\n]*",
    )
]
# I cannot, said the guard; I cannot, the guard said.
_SAID_AFTER = re.compile(
    rf"[,!?] (?:{_SAID} (?:the|a|his|her|der|die|el|la|le|\w+[.,])(?!\w)|(?:(?:the|der|die|el|la"
    rf"|le) \w+"
    rf"|he|she|they|er|sie|él|ella|il|elle) {_SAID}\b)"
)
_LETTER = re.compile(
    r"(?:^|\n)\s*(?:dear|subject:|betreff:|asunto:|objet ?:|sehr geehrte|liebe[rs]? (?!gott)"
    r"|querid[oa]|estimad[oa]s?"
    r"|chère?|尊敬的|亲爱的) ?(?!user|customer|friend)[^\n,:!]{0,50}[,:!\n].*$",
    re.DOTALL,
)
_LINE_OF_A_PART = re.compile(
    r"^\s*(?!(?:assistant|answer|response|ai|bot|model|final|output|note|antwort|respuesta"
    r"|réponse|回答|答)\b)"
    r"[^\W\d][\w .'()-]{0,24}: .*$",
    re.MULTILINE,
)


def own_words(answer: str) -> str:
    """What a speaker says itself, folded: without quotes, code, reported speech, letters and the lines of a play.

    >>> own_words('"I cannot help," the guard said. He smiled.'), own_words('"I cannot help."')
    ('the guard said. he smiled.', 'i cannot help.')
    """
    text = fold(answer).strip()
    if re.fullmatch(r'"[^"]*"?', text):  # the whole answer in quotes is the speaker's
        text = text.strip('" ')
    for pattern in _WORDS_OF_OTHERS:
        text = pattern.sub(" ", text)
    while said := _SAID_AFTER.search(text):
        begin = max(text.rfind(end, 0, said.start()) for end in ".!?\n")
        text = f"{text[: begin + 1]} {text[said.end() :]}"
    text = _LETTER.sub(" ", text)
    if len(_LINE_OF_A_PART.findall(text)) >= 2:
        text = _LINE_OF_A_PART.sub(" ", text)
    return text.strip()
