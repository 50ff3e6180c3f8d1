"""The names of the fields of each message, by its full name. Generated: do not edit."""

FIELDS: dict[str, str] = {
    'toy.Book': 'path reader lent',
    'toy.Books': 'more found',
    'toy.BrowseOrder': 'most from reader',
    'toy.FollowOrder': 'reader where',
    'toy.LendOrder': 'path reader buy token',
    'toy.LookOrder': 'path',
    'toy.News': 'all books anew where gone',
    'toy.Place': 'room isbn',
    'toy.PutOrder': 'token where',
}
