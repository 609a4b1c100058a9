"""A pipeline: stages from one YAML file, each reading what earlier ones left, resumable at stage and step."""

from .load import load_pipeline
from .run import PipelineResult, StageResult, run_pipeline
from .settings import Pipeline, Stage

__all__ = ["Pipeline", "PipelineResult", "Stage", "StageResult", "load_pipeline", "run_pipeline"]
