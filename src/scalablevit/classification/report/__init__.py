"""The report on a classifier: pictures, and one page that a person can look at in a browser.

Read `figures` for what is computed, `charts` and `sheets` for what is drawn, `sentences` for what is said about it,
`contents` and `page` for how it becomes a page, `writing` for how that reaches the folder.
"""

from scalablevit.classification.report.writing import PAGE, PICTURES, check_report_folder, write_report

__all__ = ["PAGE", "PICTURES", "check_report_folder", "write_report"]
