"""report.html: what a run was asked, what happened, what it cost, and what came out, on one page."""
