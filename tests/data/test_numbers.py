"""Numbers written out: which, in which languages, and how Vietnamese says them."""

from itertools import islice

import pytest

from glocal.data import numbers
from glocal.data.numbers import COUNT, read_name, write_numbers
from glocal.data.pairs import languages_of, open_pairs
from glocal.errors import GlocalError


def test_every_number_once_and_the_small_ones_all(monkeypatch):
    monkeypatch.setattr(numbers, "_write", lambda number, language: f"{number} {language}")
    written = list(write_numbers(("en", "vi"), seed=0))
    drawn = [int(source.split()[0]) for source, _ in written]
    assert written[7] == ("7 en", "7 vi")
    assert len(set(drawn)) == len(drawn) == COUNT
    assert set(range(1000)) <= set(drawn)
    assert (min(drawn), max(drawn) < 10**6) == (0, True)
    thousands, expected = [number for number in drawn if number >= 1000], 499_500
    assert abs(sum(thousands) / len(thousands) - expected - 500) < 5_000  # even: four times the mean's deviation
    assert list(write_numbers(("en", "vi"), seed=0)) == written
    assert list(write_numbers(("en", "vi"), seed=1)) != written


def test_words():
    written = list(islice(write_numbers(("en", "vi"), seed=0), 1000))
    assert written[0] == ("zero", "không")
    assert written[15] == ("fifteen", "mười lăm")
    assert written[21] == ("twenty-one", "hai mươi mốt")
    assert written[105] == ("one hundred and five", "một trăm lẻ năm")
    assert written[955] == ("nine hundred and fifty-five", "chín trăm năm mươi lăm")
    assert len({target for _, target in written}) == 1000


def test_any_two_languages():
    assert read_name("numbers-de-fr") == ("de", "fr")
    assert read_name("numbers-pt_BR-en") == ("pt_BR", "en")
    assert list(islice(write_numbers(("de", "fr"), seed=0), 22))[21] == ("einundzwanzig", "vingt et un")


@pytest.mark.parametrize("name", ["numbers-en-xx", "numbers-en", "numbers-en-vi-de", "numbers-"])
def test_unknown_languages(name):
    with pytest.raises(GlocalError, match=r"does not name two languages of num2words.*, en, .*, vi$"):
        languages_of(name, None)


def test_a_language_that_cannot_write_a_number_is_one_line():
    with pytest.raises(GlocalError, match=r"^num2words cannot write 123456 in 'am' \("):
        numbers._write(123456, "am")


def test_languages_come_from_the_name(monkeypatch):
    monkeypatch.setattr(numbers, "COUNT", 1000)
    for languages in (None, ("vi", "en")):
        assert languages_of("numbers-vi-en", languages) == ("vi", "en")
    pairs = open_pairs("numbers-vi-en", ("vi", "en"), seed=0)
    assert pairs.splits["train"].tolist() == list(range(1000))
    assert next(pairs.read([15])) == ("mười lăm", "fifteen")
    with pytest.raises(GlocalError, match="contradict each other"):
        languages_of("numbers-vi-en", ("en", "vi"))
