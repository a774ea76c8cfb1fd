"""What two texts are compared by: a normal form for whole texts, words for parts of them."""

import re
import unicodedata

#: Below so many letters and digits, punctuation is what tells texts apart: C and C++, 1.5 and 15, :-) and :-(.
SHORT_FORM = 8


def normal_form(text: str) -> str:
    """`text` in lower case without punctuation and white space: equal for texts that are as good as the same.

    Symbols (`+ < $ €`) and combining marks stay, since they carry meaning. A short text keeps its punctuation.
    """
    folded = _folded(text)
    form = folded.translate(_PUNCTUATION)
    return form if len(form) >= SHORT_FORM else "".join(folded.split())


def words(text: str) -> list[str]:
    """The words of `text` in lower case without punctuation, which joins what it stood between: `don't` is `dont`.

    White space divides words, so a script written without it (Chinese, Thai) gives one word a line. Put together again
    without spaces, the words of all but short texts are their `normal_form`.
    """
    return _folded(text).translate(_MARKS).split()


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence of `text`, in order; parts without a word are left out.

    A sentence ends at a line's end, and at white space behind `.`, `!` or `?`, also where a quote or bracket closes
    between them. Abbreviations end one too: a piece of a sentence is still long enough to be recognised, or is not
    looked for.
    """
    parts = (part.translate(_MARKS).split() for part in _SENTENCE_END.split(_folded(text)))
    return [part for part in parts if part]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


#: Deletes punctuation, spaces, control and format characters, and modifiers such as ^ and `.
_PUNCTUATION = dict.fromkeys(
    code
    for code in range(0x110000)
    if (category := unicodedata.category(chr(code)))[0] in "PZ" or category in ("Cc", "Cf", "Sk")
)
#: The same without white space.
_MARKS = {code: None for code in _PUNCTUATION if not chr(code).isspace()}
_SENTENCE_END = re.compile(r"""[\r\n\u2028\u2029]+|(?:(?<=[.!?])|(?<=[.!?]["'”’»)\]]))\s+""")
