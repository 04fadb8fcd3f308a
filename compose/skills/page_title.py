"""The title of a web page.

The manifest gives this skill `"network": "gateway"`: its only way out is the
proxy that HTTP_PROXY and HTTPS_PROXY name, behind which the agent adds its
credential. The skill itself holds none. Where the gateway refuses, the skill
ends with an error, and the agent's caller and memory stream get the reason.
"""

import json
import sys
import urllib.error
import urllib.request
from html.parser import HTMLParser

MOST_BYTES = 512 * 1024


class TitleParser(HTMLParser):
    """Collects the text of the first title element."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.title = ""

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "title" and not self.title

    def handle_endtag(self, tag):
        if tag == "title":
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.title += data


def main() -> int:
    url = json.load(sys.stdin)["url"]
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            charset = response.headers.get_content_charset() or "utf-8"
            page = response.read(MOST_BYTES).decode(charset, "replace")
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    parser = TitleParser()
    parser.feed(page)
    json.dump({"title": " ".join(parser.title.split())}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
