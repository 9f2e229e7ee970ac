"""Our models inside the field's evaluation harnesses: lmms-eval (`harness.lmms_eval`) and VLMEvalKit."""
