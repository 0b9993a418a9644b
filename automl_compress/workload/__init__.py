"""What is compressed: a trained network, its examples in three disjoint splits, and its task."""

from automl_compress.workload.box_task import BoxTask
from automl_compress.workload.cache import cache_folder, replacing
from automl_compress.workload.card import CARD_VERSION, card_data, card_path, read_card
from automl_compress.workload.data import BOXED, DataConfig, layout_of
from automl_compress.workload.detection import Detection
from automl_compress.workload.images import ImageSet, Normalization, channel_statistics
from automl_compress.workload.models import (
    MODELS,
    ModelSpec,
    build_model,
    check_model_name,
    fixed_parameters,
)
from automl_compress.workload.resnet_cifar import PadShortcut
from automl_compress.workload.splits import Splits, load_splits, trained_normalization
from automl_compress.workload.task import CLASSIFICATION, STRATA, Sample, Score, Task
from automl_compress.workload.torchvision_models import torchvision_example, torchvision_tasks
from automl_compress.workload.weights import load_weights
from automl_compress.workload.workload import (
    Workload,
    WorkloadConfig,
    load_untrained,
    load_workload,
    task_of,
)
from automl_compress.workload.wrappers import unwrapped

__all__ = [
    "BOXED",
    "CARD_VERSION",
    "CLASSIFICATION",
    "MODELS",
    "STRATA",
    "BoxTask",
    "DataConfig",
    "Detection",
    "ImageSet",
    "ModelSpec",
    "Normalization",
    "PadShortcut",
    "Sample",
    "Score",
    "Splits",
    "Task",
    "Workload",
    "WorkloadConfig",
    "build_model",
    "cache_folder",
    "card_data",
    "card_path",
    "channel_statistics",
    "check_model_name",
    "fixed_parameters",
    "layout_of",
    "load_splits",
    "load_untrained",
    "load_weights",
    "load_workload",
    "read_card",
    "replacing",
    "task_of",
    "torchvision_example",
    "torchvision_tasks",
    "trained_normalization",
    "unwrapped",
]
