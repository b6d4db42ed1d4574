"""One typed call signature for each kind of model, one file a kind."""

from phyla.skeletons.dual import DualModel as DualModel
from phyla.skeletons.encoder_decoder import EncoderDecoderModel as EncoderDecoderModel
from phyla.skeletons.text import TextModel as TextModel
from phyla.skeletons.vision import VisionModel as VisionModel
