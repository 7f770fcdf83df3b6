"""Training on targets: examples in, plain model folders out. See `loop` for the design; `train` is the way in."""

from mixsd.training.examples import Example
from mixsd.training.loop import Step, TrainResult, train
from mixsd.training.model_folder import verify_model_folder, write_model_folder

__all__ = ["Example", "Step", "TrainResult", "train", "verify_model_folder", "write_model_folder"]
