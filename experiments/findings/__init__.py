"""What the paper and others found, each as a test on stored records.

``python -m experiments.findings`` writes FINDINGS.md. One finding a file; each is a claim, what was
reported, and rows: a statistic with its interval over trainings, on one model under one protocol,
judged by the one rule of all verdicts (:func:`experiments.summary.verdict`).
"""
