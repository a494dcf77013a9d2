"""Screening of single images: detectors with thresholds, files of verdicts, exported graphs."""
