"""The report of a run: `build` collects the data of report.json, `render` writes the page, `table` the rows for a terminal."""
