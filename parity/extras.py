"""What other commands found out, as sections of the page. Stub until their files are known."""


def extra_sections(extras):
    return []
