"""The same front end, live: serve a study's report, and a page that explains whatever image it is given."""
