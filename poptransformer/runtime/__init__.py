# SPDX-License-Identifier: Apache-2.0
"""Compiled models: made by passes, kept on disk, run by onnxruntime."""

from poptransformer.runtime.compiled import CompiledModel, compile_model
from poptransformer.runtime.ort_session import SessionSettings
from poptransformer.runtime.runtime import Runtime
from poptransformer.runtime.step_runner import StepRunner

__all__ = ["CompiledModel", "Runtime", "SessionSettings", "StepRunner", "compile_model"]
