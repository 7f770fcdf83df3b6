"""Training on targets: examples in, plain model folders out. See `loop` for the design; `train` is the way in."""

from mixsd.models.folder import verify_model_folder, write_model_folder
from mixsd.training.examples import Example
from mixsd.training.loop import Step, TrainResult, train

__all__ = ["Example", "Step", "TrainResult", "train", "verify_model_folder", "write_model_folder"]
