"""Pages: numbers in, HTML out.

`core` and `published` turn plain data into pages and touch no database. `reading` gets the data, `writing` puts pages
where they are served, `audit` reads published pages back and compares every number with the published tables.
"""
