"""What a careful colleague would say of the data.

What is asked      judge (every question, in order) -> duplicates, distances, label_findings, answer_findings, coverage,
                   groups, personal, size; figures; context (what a question is asked of)
What is shown      report (findings), asked_questions -> page, charts, printed, warning_lines
"""
