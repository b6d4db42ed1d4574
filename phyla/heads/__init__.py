"""Task heads and their losses, independent of any family: what stands on a backbone under which names."""

from typing import TYPE_CHECKING

from phyla.lazy import lazy_names

# A file is imported when one of its names is first asked for: a model needs few of them.
_NAMES = {
    "base": ("Backbone", "Call", "Head", "HeadModule",),
    "beam_span": ("BeamSpan",),
    "choice": ("MultipleChoice",),
    "classify": ("Classify", "TokenClassify",),
    "contrast": ("Contrast", "ImageProjection", "TextProjection",),
    "double": ("DoubleHeads",),
    "feature_maps": ("FeatureMaps",),
    "image": ("ImageClassify", "MaskedImage",),
    "lm": ("CausalLM", "MaskedLM", "NextSentence", "Pretraining", "Seq2SeqLM", "Transform",),
    "span": ("Span",),
    "summary": ("SummaryChoice", "SummaryClassify",),
}  # fmt: skip
__getattr__, __dir__ = lazy_names(__name__, _NAMES)

if TYPE_CHECKING:
    from phyla.heads.base import *  # noqa: F403
    from phyla.heads.beam_span import *  # noqa: F403
    from phyla.heads.choice import *  # noqa: F403
    from phyla.heads.classify import *  # noqa: F403
    from phyla.heads.contrast import *  # noqa: F403
    from phyla.heads.double import *  # noqa: F403
    from phyla.heads.feature_maps import *  # noqa: F403
    from phyla.heads.image import *  # noqa: F403
    from phyla.heads.lm import *  # noqa: F403
    from phyla.heads.span import *  # noqa: F403
    from phyla.heads.summary import *  # noqa: F403
