from .files import ModelFiles as ModelFiles
from .hooked import HookedModel as HookedModel
from .hooked import load_hooked as load_hooked
from .hooked import load_weights_into as load_weights_into
from .hooked import model_vocabulary as model_vocabulary
from .hooked import prove_conversion as prove_conversion
from .vocabulary import Vocabulary as Vocabulary
from .vocabulary import vocabulary_of as vocabulary_of
