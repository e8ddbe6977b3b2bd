"""The studio: a page that shows what a sampler does while it draws, on the engine of `serving`.

It is what `ddim studio` opens, and needs the extra "studio".

app        the page and its header, and how it is put into a server
desk       what all tabs share: models, visitors, two ways to draw
sessions   the visitors, and their files, which go with them
panel      the settings of a picture
stage      what shows while something is drawn
uploads    pictures that visitors drop; recipes, what a PNG says of how it was made
draw       a file for each tab
compare    the same settings but one or two; axes, what may differ, and table, what comes of it
trajectory every step of a run; recording, what is kept of it
"""

__all__: list[str] = []  # whoever wants it in a server of their own finds it in `studio.app` and `studio.desk`
