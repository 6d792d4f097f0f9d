"""What a careful colleague would say of the data.

What is counted    observation (while rows are tokenised) -> texts, fingerprints, sample
What is asked      judge (every question, in order) -> duplicates, distances, labels, answers, coverage, leftovers,
                   groups, personal, size; figures; context (what a question is asked of)
What is shown      report (findings) -> page, charts, terminal, summary
"""
