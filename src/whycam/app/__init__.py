"""Serve a study's report, and a page that explains any image it is given, with the report's front end."""
