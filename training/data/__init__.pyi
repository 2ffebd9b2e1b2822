from .batches import batch as batch
from .batches import windows as windows
from .corpora import check_corpus as check_corpus
from .repeats import repeat_value as repeat_value
from .shards import ShardedArray as ShardedArray
from .store import TokenStore as TokenStore
from .store import open_store as open_store
from .store import token_store as token_store
