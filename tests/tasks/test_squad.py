"""Scores of SQuAD 2.0 against evaluate-v2.0.py, written down here once more as its authors have it."""

import collections
import random
import re
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.tasks.squad import BestSpan, choose_threshold, squad2_scores

# ------------------------------------------------------------------------------- evaluate-v2.0.py, but for its reading


def normalize_answer(s):
    def remove_articles(text):
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return " ".join(remove_articles(remove_punc(s.lower())).split())


def get_tokens(s):
    return normalize_answer(s).split() if s else []


def compute_exact(a_gold, a_pred):
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold, a_pred):
    gold_toks, pred_toks = get_tokens(a_gold), get_tokens(a_pred)
    num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def get_raw_scores(gold, preds):
    exact_scores, f1_scores = {}, {}
    for qid, texts in gold.items():
        gold_answers = [text for text in texts if normalize_answer(text)] or [""]
        exact_scores[qid] = max(compute_exact(a, preds[qid]) for a in gold_answers)
        f1_scores[qid] = max(compute_f1(a, preds[qid]) for a in gold_answers)
    return exact_scores, f1_scores


def apply_no_ans_threshold(scores, na_probs, qid_to_has_ans, na_prob_thresh):
    return {qid: float(not qid_to_has_ans[qid]) if na_probs[qid] > na_prob_thresh else s for qid, s in scores.items()}


def find_best_thresh(preds, scores, na_probs, qid_to_has_ans):
    cur_score = best_score = sum(1 for k in qid_to_has_ans if not qid_to_has_ans[k])
    best_thresh = 0.0
    for qid in sorted(na_probs, key=lambda k: na_probs[k]):
        if qid_to_has_ans[qid]:
            diff = scores[qid]
        else:
            diff = -1 if preds[qid] else 0
        cur_score += diff
        if cur_score > best_score:
            best_score = cur_score
            best_thresh = na_probs[qid]
    return 100.0 * best_score / len(scores), best_thresh


def official(gold, preds, na_probs, thresh):
    has_ans = {qid: bool(texts) for qid, texts in gold.items()}
    exact_raw, f1_raw = get_raw_scores(gold, preds)
    out = {}
    kinds = {"": list(gold), "HasAns_": [q for q in gold if has_ans[q]], "NoAns_": [q for q in gold if not has_ans[q]]}
    for prefix, qids in kinds.items():
        if qids:
            for name, raw in (("exact", exact_raw), ("f1", f1_raw)):
                scores = apply_no_ans_threshold(raw, na_probs, has_ans, thresh)
                out[prefix + name] = 100.0 * sum(scores[qid] for qid in qids) / len(qids)
            out[f"{prefix}total"] = len(qids)
    for name, raw in (("exact", exact_raw), ("f1", f1_raw)):
        out[f"best_{name}"], out[f"best_{name}_thresh"] = find_best_thresh(preds, raw, na_probs, has_ans)
    return out


# ------------------------------------------------------------------------------------------------------------- compared

ANSWERS = ["Ada Lovelace", "the Ada", "in 1843", "1843.", "a", "", "a note", "Lovelace, Ada!", "ADA  lovelace"]


def questions(seed, size=40, ties=False):
    """Best spans with their no-answer scores, and references, of which some questions have none."""
    rng = random.Random(seed)
    scores = [float(rng.randint(-3, 3)) if ties else rng.gauss(0, 4) for _ in range(size)]
    spans = [BestSpan(rng.choice([text for text in ANSWERS if text]), score) for score in scores]
    spans[0] = BestSpan("", float("inf"))  # a context without tokens
    references = [rng.choices(ANSWERS, k=rng.randint(1, 3)) if rng.random() < 0.6 else [] for _ in range(size)]
    return spans, references


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(-5, 5), st.booleans())
def test_scores_are_the_official_ones(seed, threshold, ties):
    spans, references = questions(seed, ties=ties)
    gold = dict(enumerate(references))
    preds, na_probs = ({i: span[part] for i, span in enumerate(spans)} for part in (0, 1))
    expected = official(gold, preds, na_probs, threshold)
    found = squad2_scores(spans, references, threshold)
    assert found == pytest.approx(expected, abs=1e-9)
    assert list(found) == list(expected)


@pytest.mark.parametrize("kind", ["HasAns", "NoAns"])
def test_a_kind_of_question_that_is_missing_has_no_scores(kind):
    references = [["Ada"]] * 3 if kind == "NoAns" else [[]] * 3
    found = squad2_scores([BestSpan("Ada", -1.0)] * 3, references, 0.0)
    assert not [name for name in found if name.startswith(kind)]
    assert found["f1"] == (100 if kind == "NoAns" else 0)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_the_threshold_is_the_best_of_all(seed, ties):
    """A brute-force search: no threshold has a higher F1, and none that is lower has the same."""
    spans, references = questions(seed, ties=ties)
    chosen = choose_threshold(spans, references)
    lowest, *others = sorted({span.no_answer_score for span in spans} - {float("inf")})
    none = lowest - 1  # answers nothing
    scores = {each: squad2_scores(spans, references, each)["f1"] for each in (none, lowest, *others)}
    first = next(each for each, score in scores.items() if score > max(scores.values()) - 1e-9)
    assert none < chosen < lowest if first == none else chosen == first
    assert squad2_scores(spans, references, chosen)["f1"] == pytest.approx(max(scores.values()), abs=1e-9)


def test_where_no_answer_at_all_is_best_none_is_given():
    spans = [BestSpan("a b", -2.0), BestSpan("c", -1.0)]
    chosen = choose_threshold(spans, [[], []])
    assert chosen == np.nextafter(-2.0, -np.inf)
    assert squad2_scores(spans, [[], []], chosen)["exact"] == 100


def test_spans_that_do_not_pair_up_are_refused():
    for score in (choose_threshold, lambda *given: squad2_scores(*given, 0.0)):
        with pytest.raises(GlocalError, match="1 answers against 2 questions"):
            score([BestSpan("a", 0.0)], [[], []])
