"""One typed call signature for each kind of model, one file a kind."""

from typing import TYPE_CHECKING

from phyla.lazy import lazy_names

# A file is imported when one of its names is first asked for: a model needs few of them.
_NAMES = {
    "drafting": ("BlockDraftModel",),
    "dual": ("DualModel",),
    "encoder_decoder": ("EncoderDecoderModel",),
    "filling": ("FillingTextModel",),
    "hashing": ("HashTextModel",),
    "latent": ("LatentModel",),
    "long": ("GlobalEncoderDecoderModel", "GlobalTextModel",),
    "memory": ("MemoryTextModel",),
    "multimodal": ("GridTextModel", "ImageTextModel",),
    "question": ("QuestionTextModel",),
    "table": ("TableModel",),
    "text": ("TextModel",),
    "vision": ("BackboneModel", "VisionModel",),
}  # fmt: skip
__getattr__, __dir__ = lazy_names(__name__, _NAMES)

if TYPE_CHECKING:
    from phyla.skeletons.drafting import *  # noqa: F403
    from phyla.skeletons.dual import *  # noqa: F403
    from phyla.skeletons.encoder_decoder import *  # noqa: F403
    from phyla.skeletons.filling import *  # noqa: F403
    from phyla.skeletons.hashing import *  # noqa: F403
    from phyla.skeletons.latent import *  # noqa: F403
    from phyla.skeletons.long import *  # noqa: F403
    from phyla.skeletons.memory import *  # noqa: F403
    from phyla.skeletons.multimodal import *  # noqa: F403
    from phyla.skeletons.question import *  # noqa: F403
    from phyla.skeletons.table import *  # noqa: F403
    from phyla.skeletons.text import *  # noqa: F403
    from phyla.skeletons.vision import *  # noqa: F403
