"""Published checkpoints of other systems become safetensors + record.

How tensor names translate is data: one module per system holds its ``KeyTable``, ``tables`` says which registered model
uses which.
"""

from modelkit.importing.checkpoints import read_checkpoint
from modelkit.importing.key_table import KeyTable, State
from modelkit.importing.tables import TABLES
from modelkit.importing.translation import import_weights

__all__ = ["TABLES", "KeyTable", "State", "import_weights", "read_checkpoint"]
