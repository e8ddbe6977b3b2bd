"""How far samples are from data: features of pictures, and what is measured on them.

A Fréchet distance is called FID only where the features are Inception's.
"""

from ddim.evaluation.features import EXTRACTORS, FeatureExtractor, load_features
from ddim.evaluation.kernel import KernelDistance, kernel_distance
from ddim.evaluation.manifold import PrecisionRecall, nearest_distances, precision_recall
from ddim.evaluation.statistics import FeatureStatistics, bootstrap_error, frechet_distance, ideal_distance

__all__ = [
    "EXTRACTORS",
    "FeatureExtractor",
    "FeatureStatistics",
    "KernelDistance",
    "PrecisionRecall",
    "bootstrap_error",
    "frechet_distance",
    "ideal_distance",
    "kernel_distance",
    "load_features",
    "nearest_distances",
    "precision_recall",
]
