"""Is the chain of thought in the language that was asked for? The script decides first, then py3langid, word by word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from copy import copy
from functools import cache, lru_cache
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlreason.types import Task

# Languages by script. Of a script's languages the target competes with those listed; a language that is listed nowhere
# is written in Latin letters, and joins those. Few rivals on purpose: each further one takes words from the right one.
WRITTEN = {
    "LATIN": "en de fr es pt it nl sv da no fi pl cs ro hu tr vi id",
    "CYRILLIC": "ru uk bg sr be mk kk ky mn tg",
    "ARABIC": "ar fa ur ps ug",
    "DEVANAGARI": "hi mr ne sa",
    "BENGALI": "bn as",
    "HEBREW": "he",
    "GREEK": "el",
    "HANGUL": "ko",
    "THAI": "th", "LAO": "lo", "KHMER": "km", "MYANMAR": "my",
    "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn", "MALAYALAM": "ml", "GUJARATI": "gu", "GURMUKHI": "pa", "SINHALA": "si",
    "GEORGIAN": "ka", "ARMENIAN": "hy", "ETHIOPIC": "am",
}  # fmt: skip
SCRIPTS = {language: script for script, languages in WRITTEN.items() for language in languages.split()}
NAMED = {"CJK": "HAN", "IDEOGRAPHIC": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA", "KATAKANA-HIRAGANA": "KANA"}
LETTERS_PER_WORD = {"HAN": 1, "KANA": 1, "THAI": 4, "LAO": 4, "KHMER": 4, "MYANMAR": 4}  # scripts without spaces
KNOWN = {*WRITTEN, "HAN", "KANA"}
SYMBOLS = {"LATIN", "GREEK"}  # scripts whose letters stand for numbers, points and units, whatever the language

# Code, formulas, addresses and tags are in no language. Each alternative stops at the next opening of its kind, so that
# a text full of openings that nothing closes costs linear time.
NEUTRAL = re.compile(
    r"""```.*?(?:```|\Z) | `[^`\n]*`
      | \$\$.*?\$\$ | \$(?=\S)[^$\n]*(?<=\S)\$(?!\d)          # as in Markdown: $5 and $6 are no formula
      | \\\[(?:(?!\\\[).)*?\\\] | \\\((?:(?!\\\().)*?\\\)
      | \\begin\{(?:(?!\\begin\{).)*?\\end\{[^{}\n]*\} | \\[A-Za-z]+ (?:\{[A-Za-z]+\})?
      | https?://\S+ | </?[A-Za-z][\w-]*/?>""",
    re.DOTALL | re.VERBOSE,
)
END = re.compile(r"[.!?:;\n。！？：；।]")
LONGEST = 50_000  # words that are looked at: a bound on time, far above what a model writes
STAY = 6.0  # nats that a change of language costs inside a sentence, tuned on sentences cut up and shuffled
TURN = 2.0  # and at the end of a sentence
DOUBT = 1.0  # nats a word in favour of the target: names, and words that many languages share


class Word(NamedTuple):
    script: str
    letters: str
    opens: bool  # begins a sentence


def language(task: Task, text: str, *, target: str = "en", wordless: float = 1.0) -> float:
    """The share of the words of the chain of thought that are in the target language (DeepSeek-R1, Nature 2025, eq. 7).

    The chain of thought is what stands inside <think> … </think>, or before </think>; without tags it is the whole
    text. Code, formulas, addresses, numbers and symbols count for nothing. Without any word the value is
    `wordless`: nothing in it is in another language.

    `target` is an ISO 639-1 code, or the characters of an alphabet as in a regular expression: `[a-m]` gives the share
    of the letters and digits that are among them. `task.info["language"]`, where there is one, takes its place.

    In a script without spaces a character is a word (Thai and its neighbours: four). Within a script, words are
    told apart by the most likely path through the languages, on which a change costs something.
    Raises `ValueError` for a language that is not known.
    """
    wanted = (task.info or {}).get("language", target)
    if not isinstance(wanted, str) or not wanted:
        raise ValueError(f"{wanted!r} is no language: say an ISO 639-1 code, such as en, or characters, such as [a-m]")
    thought = _thought(text)
    hits, total = _spelled(thought, wanted) if wanted.startswith("[") else _spoken(thought, wanted)
    return hits / total if total else wordless


def _thought(text: str) -> str:
    head, closed, rest = text.rpartition("</think>")
    before, opened, after = (head if closed else rest).partition("<think>")
    return after if opened else before


def _spelled(text: str, alphabet: str) -> tuple[int, int]:
    try:
        inside = re.compile(alphabet)
    except re.error as error:
        raise ValueError(f"{alphabet!r} is no set of characters such as [a-m]: {error}") from None
    characters = [c for c in text if c.isalnum()]
    return sum(inside.fullmatch(c) is not None for c in characters), len(characters)


def _spoken(text: str, wanted: str) -> tuple[int, int]:
    code = re.split("[-_]", wanted.lower())[0]
    script = SCRIPTS.get(code, "LATIN")
    if code not in ("zh", "ja") and code not in _labels():
        raise ValueError(f"{wanted!r} is no language that can be told; known are zh, ja and {', '.join(_labels())}")
    words = list(islice(_words(text), LONGEST))
    total = sum(_count(word) for word in words)
    if code in ("zh", "ja"):
        return _east_asian(words, code), total
    own = [word for word in words if word.script == script]
    rivals = sorted({code, *WRITTEN[script].split()})
    if len(rivals) == 1 or not own:
        return sum(_count(word) for word in own), total
    path = _path(own, rivals, code)
    return sum(_count(word) for word, found in zip(own, path, strict=True) if found == code), total


def _count(word: Word) -> int:
    return -(-len(word.letters) // LETTERS_PER_WORD[word.script]) if word.script in LETTERS_PER_WORD else 1


def _words(text: str) -> Iterator[Word]:
    """Runs of letters of one script. Single letters, abbreviations and letters among digits are symbols, and left out."""
    runs, accented = _patterns()
    # Not the whole text at once: the time that normalising takes grows with the square of a row of accents.
    text = accented.sub(lambda found: unicodedata.normalize("NFC", found[0]), NEUTRAL.sub(" ", text))
    end, opens = 0, True
    for run in runs.finditer(text):
        opens = opens or END.search(text, end, run.start()) is not None
        end = run.end()
        whole = run.group()
        digits = any(c.isdigit() or c == "_" for c in whole)
        parts = [("LATIN", whole)] if whole.isascii() else _by_script(whole)
        for script, letters in parts:
            symbol = digits or len(letters) == 1 or (letters.isupper() and len(letters) < 5)
            if script in KNOWN and not (symbol and script in SYMBOLS):
                yield Word(script, letters, opens)
                opens = False


def _by_script(run: str) -> list[tuple[str, str]]:
    return [(script, "".join(letters)) for script, letters in groupby(run, _script)]


@lru_cache(65_536)
def _script(character: str) -> str:
    """The script that a character's Unicode name begins with."""
    first = unicodedata.name(character, "?").split()[0]
    return NAMED.get(first, first)


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Runs of letters, with the accents and vowel signs that \\w leaves out; and a letter with its accents."""
    marks = "".join(chr(c) for c in range(0x300, 0x10000) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
    return re.compile(rf"\w[\w{marks}]*(?:['’][^\W\d_][\w{marks}]*)*"), re.compile(rf"\w[{marks}]{{1,4}}")


def _east_asian(words: list[Word], code: str) -> int:
    """Characters of Chinese or of Japanese: a sentence with kana is Japanese, and one of Han characters alone Chinese.

    A sentence of Han characters alone that is no longer than a heading goes with the majority of the others.
    """
    sentences: list[list[Word]] = []
    for word in words:
        if word.opens or not sentences:
            sentences.append([])
        sentences[-1].append(word)
    sizes = {"zh": 0, "ja": 0, "": 0}
    for sentence in sentences:
        han, kana = (sum(len(w.letters) for w in sentence if w.script == script) for script in ("HAN", "KANA"))
        sizes["ja" if kana else "zh" if han > 4 else ""] += han + kana
    major = "ja" if sizes["ja"] > sizes["zh"] else "zh"
    return sizes[code] + (sizes[""] if code == major else 0)


def _path(words: list[Word], languages: list[str], target: str) -> list[str]:
    """The most likely language of each word, by Viterbi's algorithm: a change costs STAY nats, or TURN between sentences."""
    score = np.zeros(len(languages))
    doubt = np.zeros(len(languages))
    doubt[languages.index(target)] = DOUBT
    back: list[tuple[int, NDArray[np.bool_]]] = []
    for word in words:
        best = int(score.argmax())
        come = score[best] - (TURN if word.opens else STAY)
        change = score < come
        back.append((best, change))
        score = np.where(change, come, score) + _likelihood(word.letters[:40], tuple(languages)) + doubt
    at = int(score.argmax())
    path = []
    for best, change in reversed(back):
        path.append(languages[at])
        at = best if change[at] else at
    return path[::-1]


@lru_cache(100_000)
def _likelihood(word: str, languages: tuple[str, ...]) -> NDArray[np.float64]:
    """Log-likelihoods [languages] of one word, the best of them 0."""
    found = dict(_identifier(languages).rank(f" {word} "))
    scores = np.array([found[code] for code in languages])
    return np.zeros(len(scores)) if scores.max() < -1e30 else scores - scores.max()  # the first: no feature seen


@cache
def _identifier(languages: tuple[str, ...]) -> Any:
    identifier = copy(_model())  # shares the tables: some 100 MB
    identifier.set_languages(languages)
    return identifier


@cache
def _labels() -> tuple[str, ...]:
    return tuple(sorted(label for label in _model().labels if len(label) == 2))


@cache
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
