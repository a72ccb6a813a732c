"""Pages: what a command found as one HTML file that needs nothing else, for people who have not seen the project.

A page is data (``parts``); ``write`` makes HTML of it with the template, style and script that lie beside it. Whoever
makes pages hands over the tables and numbers that the terminal and the JSON show, so that nothing is worked out twice.
"""
