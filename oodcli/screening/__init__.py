"""Verdicts on single images: detectors with a threshold, files of verdicts, exported graphs."""
