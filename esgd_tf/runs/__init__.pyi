from .checkpoints import load_checkpoint as load_checkpoint
from .checkpoints import save_checkpoint as save_checkpoint
from .errors import CheckpointError as CheckpointError
from .errors import NotFiniteError as NotFiniteError
from .errors import RunFolderError as RunFolderError
from .run_folder import RunFolder as RunFolder
from .stored_run import StoredRun as StoredRun
