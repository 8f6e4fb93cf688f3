"""From files, the hub or what is built in to batches of tokens: documents, labelled texts, sentence pairs."""

from glocal.data.text.config import (
    CompletionsConfig,
    CorpusConfig,
    MaskedCorpusConfig,
    PairsConfig,
    QuestionsConfig,
    SentencesConfig,
    TaggedConfig,
    TextsConfig,
    TokenizerConfig,
)
from glocal.data.text.documents.masked import Masked, open_masked
from glocal.data.text.documents.packed import Packed, open_packed
from glocal.data.text.labelled.completions import Completion, open_completions
from glocal.data.text.labelled.questions import Question, Questions, open_questions
from glocal.data.text.labelled.sentences import Sentence, open_sentences
from glocal.data.text.labelled.tagged import Tagged, open_tagged
from glocal.data.text.labelled.texts import Texts
from glocal.data.text.pairs.pairs import Pairs, open_pairs
from glocal.data.text.pairs.sources import languages_of
from glocal.data.text.tokenizer import Subwords, Tokenizer, learn_tokenizer

__all__ = [
    "Completion",
    "CompletionsConfig",
    "CorpusConfig",
    "Masked",
    "MaskedCorpusConfig",
    "Packed",
    "Pairs",
    "PairsConfig",
    "Question",
    "Questions",
    "QuestionsConfig",
    "Sentence",
    "SentencesConfig",
    "Subwords",
    "Tagged",
    "TaggedConfig",
    "Texts",
    "TextsConfig",
    "Tokenizer",
    "TokenizerConfig",
    "languages_of",
    "learn_tokenizer",
    "open_completions",
    "open_masked",
    "open_packed",
    "open_pairs",
    "open_questions",
    "open_sentences",
    "open_tagged",
]
