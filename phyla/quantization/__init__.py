"""Quantised weights: the public formats read without their makers' packages, held packed, and made at load.

One file a format (gptq, awq, bitsandbytes, compressed, fp8, mxfp4); `view` shows a checkpoint of any of them
as a dense one, `linear` and `install` keep it packed, `configs` has the public settings.
"""
