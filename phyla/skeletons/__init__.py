"""One typed call signature for each kind of model, one file a kind."""

from phyla.skeletons.dual import DualModel as DualModel
from phyla.skeletons.encoder_decoder import EncoderDecoderModel as EncoderDecoderModel
from phyla.skeletons.latent import LatentModel as LatentModel
from phyla.skeletons.filling import FillingTextModel as FillingTextModel
from phyla.skeletons.hashing import HashTextModel as HashTextModel
from phyla.skeletons.long import GlobalEncoderDecoderModel as GlobalEncoderDecoderModel
from phyla.skeletons.long import GlobalTextModel as GlobalTextModel
from phyla.skeletons.memory import MemoryTextModel as MemoryTextModel
from phyla.skeletons.multimodal import GridTextModel as GridTextModel
from phyla.skeletons.multimodal import ImageTextModel as ImageTextModel
from phyla.skeletons.table import TableModel as TableModel
from phyla.skeletons.question import QuestionTextModel as QuestionTextModel
from phyla.skeletons.text import TextModel as TextModel
from phyla.skeletons.vision import BackboneModel as BackboneModel
from phyla.skeletons.vision import VisionModel as VisionModel
