/* The table of character classes is what the grammar says, byte by byte. */
#include <string.h>

#include "dp_chars.h"
#include "support.h"

static bool is_in(int byte, const char *set)
{
    return byte != 0 && strchr(set, byte) != NULL;
}

int main(void)
{
    for (int byte = 0; byte < 256; byte++) {
        const bool digit = byte >= '0' && byte <= '9';
        const bool letter = (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z');
        const bool visible = byte > 0x20 && byte < 0x7f;
        unsigned wanted = 0;

        if (digit || letter || is_in(byte, "!#$%&'*+-.^_`|~")) {
            wanted |= DP_CH_TOKEN;
        }
        if (digit || is_in(byte, "abcdefABCDEF")) {
            wanted |= DP_CH_HEX;
        }
        if (visible || byte >= 0x80 || is_in(byte, " \t")) {
            wanted |= DP_CH_TEXT;
        }
        if (visible && !is_in(byte, "\"<>#%")) {
            wanted |= DP_CH_QUERY;
        }
        if (visible && !is_in(byte, "\"<>#%?\\")) {
            wanted |= DP_CH_PATH;
        }
        if (digit || letter || is_in(byte, "-._~")) {
            wanted |= DP_CH_HOST;
        }
        if (byte == '_') {
            wanted |= DP_CH_UNDERSCORE;
        }
        expect("class of each byte", dp_char_class[byte] == wanted);
    }
    return finish("characters");
}
