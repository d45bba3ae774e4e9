/* Request heads: each case is fed whole and byte by byte, then parsed at both ends of guarded
 * room; what comes of it is one line of text. */
#include <stdio.h>
#include <string.h>

#include "dp_chars.h"
#include "dp_http1.h"
#include "support.h"

#define H "GET / HTTP/1.1\r\nHost: a\r\n"

static const dp_head_limits LIMITS = {.max_bytes = 4096, .max_fields = 8, .max_target = 64};

static const struct test_case CASES[] = {
    /* the line */
    {"smallest", "9112 3", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / host=a 1.1 none keep", 0},
    {"other method", "9110 9.1", "PURGE / HTTP/1.1\r\nHost: a\r\n\r\n",
     "PURGE* / host=a 1.1 none keep", 0},
    {"method's case", "9110 9.1", "get / HTTP/1.1\r\nHost: a\r\n\r\n",
     "get* / host=a 1.1 none keep", 0},
    {"no method", "9112 3", " / HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"method not a token", "9112 3", "G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"two spaces before target", "9112 3", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"two spaces after target", "9112 3", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"tab for space", "9112 3", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"space after version", "9112 3", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "malformed", 0},
    {"space in target", "9112 3.2", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"no version", "9112 3", "GET /\r\n\r\n", "malformed", 0},
    {"empty line first", "9112 2.2", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"HTTP/1.0", "9112 9.3", "GET / HTTP/1.0\r\n\r\n", "GET / 1.0 none close", 0},
    {"HTTP/1.2", "9112 2.3", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", "version", 0},
    {"HTTP/2.0", "9112 2.3", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", "version", 0},
    {"HTTP/0.9 told", "9112 2.3", "GET / HTTP/0.9\r\nHost: a\r\n\r\n", "version", 0},
    {"HTTP/2 preface", "9113 3.4", "PRI * HTTP/2.0\r\n\r\n", "version", 0},
    {"version's case", "9112 2.3", "GET / http/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"two digits of minor", "9112 2.3", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", "malformed", 0},
    {"TLS hello", "9112 3", "\x16\x03\x01", "malformed", 0},
    /* line ends */
    {"bare LF in line", "9112 2.2", "GET / HTTP/1.1\nHost: a\r\n\r\n", "malformed", 0},
    {"bare LF at end", "9112 2.2", H "\n", "malformed", 0},
    {"bare CR in value", "9112 2.2", H "X: a\rb\r\n\r\n", "malformed", 0},
    {"NUL in value", "9110 5.5", H "X: a\0b\r\n\r\n", "malformed", sizeof(H "X: a\0b\r\n\r\n") - 1},
    {"NUL in target", "9112 3.2", "GET /\0 HTTP/1.1\r\n", "malformed", 17},
    {"control in value", "9110 5.5", H "X: a\x01\r\n\r\n", "malformed", 0},
    {"DEL in value", "9110 5.5", H "X: \x7f\r\n\r\n", "malformed", 0},
    {"unfinished", "9112 2.2", H, "more", 0},
    {"unfinished at CR", "9112 2.2", H "\r", "more", 0},
    /* targets */
    {"query", "9112 3.2.1", "GET /a/b?c=/?d HTTP/1.1\r\nHost: a\r\n\r\n",
     "GET /a/b ?c=/?d host=a 1.1 none keep", 0},
    {"empty query", "9112 3.2.1", "GET /? HTTP/1.1\r\nHost: a\r\n\r\n",
     "GET / ? host=a 1.1 none keep", 0},
    {"two slashes", "9112 3.2.1", "GET //b HTTP/1.1\r\nHost: a\r\n\r\n",
     "GET //b host=a 1.1 none keep", 0},
    {"fragment", "9112 3.2", "GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"encoded", "3986 2.1", "GET /%41%c3%bc HTTP/1.1\r\nHost: a\r\n\r\n",
     "GET /A%C3%BC host=a 1.1 none keep", 0},
    {"half an encoding", "3986 2.1", "GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"not an encoding", "3986 2.1", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"not an encoding in query", "3986 2.1", "GET /?100% HTTP/1.1\r\nHost: a\r\n\r\n", "malformed",
     0},
    {"encoded NUL", "", "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"raw high byte", "3986 2", "GET /\xc3\xbc HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"backslash in path", "3986 3.3", "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"up", "3986 6.2.2.3", "GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n", "GET /b host=a 1.1 none keep",
     0},
    {"up at end", "3986 6.2.2.3", "GET /a/..?b HTTP/1.1\r\nHost: a\r\n\r\n",
     "GET / ?b host=a 1.1 none keep", 0},
    {"up above the root", "", "GET /a/../.. HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"here", "3986 6.2.2.3", "GET /./b HTTP/1.1\r\nHost: a\r\n\r\n", "GET /b host=a 1.1 none keep",
     0},
    {"up encoded", "3986 6.2.2.3", "GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n",
     "GET /b host=a 1.1 none keep", 0},
    {"up half encoded", "3986 6.2.2.3", "GET /a/.%2e HTTP/1.1\r\nHost: a\r\n\r\n",
     "GET / host=a 1.1 none keep", 0},
    {"up by encoded slash", "", "GET /a%2f..%2fb HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"up by encoded backslash", "", "GET /a%5c..%5Cb HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"up with parameters", "", "GET /a/..;x/b HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"dots in names", "3986 3.3", "GET /.a/b./...;..?../ HTTP/1.1\r\nHost: a\r\n\r\n",
     "GET /.a/b./...;.. ?../ host=a 1.1 none keep", 0},
    {"encoded slash", "", "GET /a%2Fb HTTP/1.1\r\nHost: a\r\n\r\n",
     "GET /a%2Fb host=a 1.1 none keep", 0},
    {"asterisk", "9112 3.2.4", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
     "OPTIONS * host=a 1.1 none keep", 0},
    {"asterisk and more", "9112 3.2.4", "OPTIONS *x HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"asterisk without OPTIONS", "9112 3.2.4", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", 0},
    {"authority", "9112 3.2.3", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "method", 0},
    {"authority without CONNECT", "9112 3.2.3", "GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
     "malformed", 0},
    {"absolute", "9112 3.2.2", "GET http://b:8/p?q HTTP/1.1\r\nHost: B:8\r\n\r\n",
     "GET /p ?q host=b:8 name=b 1.1 none keep", 0},
    {"absolute https", "9112 3.2.2", "GET HTTPS://b/ HTTP/1.1\r\nHost: b\r\n\r\n",
     "GET / host=b 1.1 none keep", 0},
    {"absolute, empty path", "9110 4.2.3", "GET http://b HTTP/1.1\r\nHost: b\r\n\r\n",
     "GET / host=b 1.1 none keep", 0},
    {"absolute, only query", "9110 4.2.3", "GET http://b?q HTTP/1.1\r\nHost: b\r\n\r\n",
     "GET / ?q host=b 1.1 none keep", 0},
    {"absolute, encoded host", "", "GET http://b%41 HTTP/1.1\r\nHost: b\r\n\r\n", "malformed", 0},
    {"absolute, Host differs", "9112 3.2.2", "GET http://b/ HTTP/1.1\r\nHost: c\r\n\r\n",
     "malformed", 0},
    {"absolute, no Host", "9112 3.2.2", "GET http://b/ HTTP/1.1\r\n\r\n", "malformed", 0},
    {"absolute, HTTP/1.0", "9112 3.2.2", "GET http://b/ HTTP/1.0\r\n\r\n",
     "GET / host=b 1.0 none close", 0},
    {"absolute, userinfo", "9110 4.2.4", "GET http://u@b/ HTTP/1.1\r\nHost: b\r\n\r\n", "malformed",
     0},
    {"absolute, no host", "9110 4.2.1", "GET http:///x HTTP/1.1\r\nHost: b\r\n\r\n", "malformed",
     0},
    {"absolute, other scheme", "9112 3.2.2", "GET ftp://b/ HTTP/1.1\r\nHost: b\r\n\r\n",
     "malformed", 0},
    {"absolute, up", "3986 3.3", "GET http://b/../ HTTP/1.1\r\nHost: b\r\n\r\n", "malformed", 0},
    {"target too long", "9110 15.5.15",
     "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: "
     "a\r\n\r\n",
     "target", 0},
    {"target just fits", "9110 15.5.15",
     "GET /?aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: "
     "a\r\n\r\n",
     "GET / ?aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa host=a 1.1 none keep",
     0},
    /* Host */
    {"no Host", "9112 3.2", "GET / HTTP/1.1\r\n\r\n", "malformed", 0},
    {"two Hosts", "9112 3.2", H "Host: a\r\n\r\n", "malformed", 0},
    {"empty Host", "9110 4.2.1", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "malformed", 0},
    {"Host with port", "9110 7.2", "GET / HTTP/1.1\r\nHost: a:8080\r\n\r\n",
     "GET / host=a:8080 name=a 1.1 none keep", 0},
    {"Host, port too large", "9110 7.2", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", "malformed", 0},
    {"Host, port not a number", "9110 7.2", "GET / HTTP/1.1\r\nHost: a:8a\r\n\r\n", "malformed", 0},
    {"Host, port empty", "9110 7.2", "GET / HTTP/1.1\r\nHost: a:\r\n\r\n", "malformed", 0},
    {"Host, port zero", "9110 7.2", "GET / HTTP/1.1\r\nHost: a:0\r\n\r\n", "malformed", 0},
    {"Host, userinfo", "9110 7.2", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "malformed", 0},
    {"Host, path", "9110 7.2", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "malformed", 0},
    {"Host, list", "9112 3.2", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "malformed", 0},
    {"Host, comma", "9112 3.2", "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", "malformed", 0},
    {"Host, empty label", "9110 7.2", "GET / HTTP/1.1\r\nHost: a..b\r\n\r\n", "malformed", 0},
    {"Host, IPv6", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
     "GET / host=[::1]:80 name=[::1] 1.1 none keep", 0},
    {"Host, IPv6 with IPv4", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: [64:ff9b::192.0.2.1]\r\n\r\n",
     "GET / host=[64:ff9b::192.0.2.1] 1.1 none keep", 0},
    {"Host, IPv6 full", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6:7:8]\r\n\r\n",
     "GET / host=[1:2:3:4:5:6:7:8] 1.1 none keep", 0},
    {"Host, IPv6 too long", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6:7:8:9]\r\n\r\n",
     "malformed", 0},
    {"Host, IPv6 two gaps", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: [1::2::3]\r\n\r\n", "malformed",
     0},
    {"Host, IPv6 colon at end", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6:7:]\r\n\r\n",
     "malformed", 0},
    {"Host, IPv6 empty", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: []\r\n\r\n", "malformed", 0},
    {"Host, IPv6 open", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "malformed", 0},
    {"Host, IPv6 zone", "6874 2", "GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n", "malformed",
     0},
    {"Host, IPv6 gap of nothing", "3986 3.2.2",
     "GET / HTTP/1.1\r\nHost: [1:2:3:4::5:6:7:8]\r\n\r\n", "malformed", 0},
    {"Host, IPv6 with IPv4, zeros", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: [::1.2.3.04]\r\n\r\n",
     "malformed", 0},
    {"Host, IPv6 bad IPv4", "3986 3.2.2", "GET / HTTP/1.1\r\nHost: [::1.2.3.256]\r\n\r\n",
     "malformed", 0},
    /* field lines */
    {"space before colon", "9112 5.1", H "X : a\r\n\r\n", "malformed", 0},
    {"fold", "9112 5.2", H "X: a\r\n b\r\n\r\n", "malformed", 0},
    {"space before first field", "9112 2.2", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", "malformed", 0},
    {"empty name", "9112 5", H ": a\r\n\r\n", "malformed", 0},
    {"no colon", "9112 5", H "Xa\r\n\r\n", "malformed", 0},
    {"name not a token", "9112 5", H "X(: a\r\n\r\n", "malformed", 0},
    {"high byte in name", "9112 5", H "X\xff: a\r\n\r\n", "malformed", 0},
    {"high byte in value", "9110 5.5", H "X: \xff\r\n\r\n", "GET / host=a 1.1 none keep", 0},
    {"empty value", "9112 5", H "X:\r\n\r\n", "GET / host=a 1.1 none keep", 0},
    {"spaces alone", "9112 5.1", H "X: \t \r\n\r\n", "GET / host=a 1.1 none keep", 0},
    {"spaces around", "9112 5.1", "GET / HTTP/1.1\r\nHost:\t a \t\r\n\r\n",
     "GET / host=a 1.1 none keep", 0},
    {"fields at limit", "", H "a:\r\nb:\r\nc:\r\nd:\r\ne:\r\nf:\r\ng:\r\n\r\n",
     "GET / host=a 1.1 none keep", 0},
    {"fields beyond limit", "", H "a:\r\nb:\r\nc:\r\nd:\r\ne:\r\nf:\r\ng:\r\nh:\r\n\r\n", "too big",
     0},
    /* Content-Length */
    {"length", "9112 6.3", H "Content-Length: 5\r\n\r\n", "GET / host=a 1.1 length=5 keep", 0},
    {"length zero", "9112 6.3", H "content-length:0\r\n\r\n", "GET / host=a 1.1 length=0 keep", 0},
    {"length, largest", "9112 6.3", H "Content-Length: 9223372036854775807\r\n\r\n",
     "GET / host=a 1.1 length=9223372036854775807 keep", 0},
    {"length, too large", "9112 6.3", H "Content-Length: 9223372036854775808\r\n\r\n", "malformed",
     0},
    {"length wraps", "9112 6.3", H "Content-Length: 18446744073709551617\r\n\r\n", "malformed", 0},
    {"length signed", "9112 6.3", H "Content-Length: +5\r\n\r\n", "malformed", 0},
    {"length negative", "9112 6.3", H "Content-Length: -1\r\n\r\n", "malformed", 0},
    {"length in hex", "9112 6.3", H "Content-Length: 0x5\r\n\r\n", "malformed", 0},
    {"length with space", "9112 6.3", H "Content-Length: 5 5\r\n\r\n", "malformed", 0},
    {"length as list", "9112 6.3", H "Content-Length: 5, 5\r\n\r\n", "malformed", 0},
    {"length twice", "9112 6.3", H "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", "malformed",
     0},
    {"length empty", "9112 6.3", H "Content-Length:\r\n\r\n", "malformed", 0},
    /* Transfer-Encoding */
    {"chunked", "9112 6.1", H "Transfer-Encoding: Chunked\r\n\r\n",
     "GET / host=a 1.1 chunked keep drop=Transfer-Encoding", 0},
    {"chunked and length", "9112 6.1", H "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
     "malformed", 0},
    {"length and chunked", "9112 6.1", H "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
     "malformed", 0},
    {"chunked in HTTP/1.0", "9112 6.1", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
     "malformed", 0},
    {"chunked twice", "9112 6.1", H "Transfer-Encoding: chunked, chunked\r\n\r\n", "malformed", 0},
    {"chunked twice, two fields", "9112 6.1",
     H "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "malformed", 0},
    {"chunked not last", "9112 6.1", H "Transfer-Encoding: chunked, gzip\r\n\r\n", "malformed", 0},
    {"chunked not last, two fields", "9112 6.1",
     H "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n", "malformed", 0},
    {"other and chunked", "9112 6.1", H "Transfer-Encoding: gzip, chunked\r\n\r\n", "coding", 0},
    {"other alone", "9112 6.1", H "Transfer-Encoding: gzip\r\n\r\n", "coding", 0},
    {"other with length", "9112 6.1", H "Transfer-Encoding: gzip\r\nContent-Length: 5\r\n\r\n",
     "malformed", 0},
    {"identity", "9112 7", H "Transfer-Encoding: identity\r\n\r\n", "coding", 0},
    {"xchunked", "9112 6.1", H "Transfer-Encoding: xchunked\r\n\r\n", "coding", 0},
    {"coding empty", "9112 6.1", H "Transfer-Encoding:\r\n\r\n", "malformed", 0},
    {"coding, empty element", "9112 6.1", H "Transfer-Encoding: ,chunked\r\n\r\n", "malformed", 0},
    {"coding, comma at end", "9112 6.1", H "Transfer-Encoding: chunked,\r\n\r\n", "malformed", 0},
    {"chunked with parameter", "9112 7.1", H "Transfer-Encoding: chunked;q=1\r\n\r\n", "malformed",
     0},
    {"chunked quoted", "9112 6.1", H "Transfer-Encoding: \"chunked\"\r\n\r\n", "malformed", 0},
    {"chunked after VT", "9112 6.1", H "Transfer-Encoding: \vchunked\r\n\r\n", "malformed", 0},
    /* Connection */
    {"close", "9112 9.3", H "Connection: close\r\n\r\n",
     "GET / host=a 1.1 none close drop=Connection", 0},
    {"close among others", "9112 9.3", H "Connection: x, ,CLOSE ,\r\n\r\n",
     "GET / host=a 1.1 none close drop=Connection", 0},
    {"1.0 keep-alive", "9112 9.3", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
     "GET / 1.0 none keep drop=Connection", 0},
    {"1.0 keep-alive and close", "9112 9.3",
     "GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
     "GET / 1.0 none close drop=Connection", 0},
    {"named field goes", "9110 7.6.1", H "X-A: 1\r\nConnection: x-a\r\nx-A: 2\r\n\r\n",
     "GET / host=a 1.1 none keep drop=X-A,Connection,x-A", 0},
    {"named in second field", "9110 7.6.1", H "Connection: b\r\nConnection: x-a\r\nX-A: 2\r\n\r\n",
     "GET / host=a 1.1 none keep drop=Connection,Connection,X-A", 0},
    {"standard fields stay", "9110 7.6.1",
     H "Connection: host, content-length, cookie\r\nContent-Length: 1\r\nCookie: c\r\n\r\n",
     "GET / host=a 1.1 length=1 keep drop=Connection", 0},
    {"forwarding fields stay", "9110 7.6.1",
     H "Connection: x-forwarded-for, forwarded\r\nX-Forwarded-For: b\r\nForwarded: c\r\n\r\n",
     "GET / host=a 1.1 none keep drop=Connection", 0},
    {"option not a token", "9110 7.6.1", H "Connection: a b\r\n\r\n", "malformed", 0},
    {"option quoted", "9110 7.6.1", H "Connection: \"close\"\r\n\r\n", "malformed", 0},
    {"too many options", "",
     H "Connection: a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a\r\n\r\n",
     "too big", 0},
    {"hop by hop", "9110 7.6.1",
     H "TE: trailers\r\nTrailer: x\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nProxy: "
       "x\r\nHTTP2-Settings: x\r\n\r\n",
     "GET / host=a 1.1 none keep drop=TE,Keep-Alive,Proxy-Connection,Proxy,HTTP2-Settings", 0},
    {"upgrade", "9110 7.8", H "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
     "GET / host=a 1.1 none keep upgrade drop=Connection,Upgrade", 0},
    {"look-alikes", "",
     H "X_Forwarded_For: b\r\nContent_length: 5\r\nX_Other: c\r\nX-Forwarded_Whatever_Else: "
       "d\r\n\r\n",
     "GET / host=a 1.1 none keep drop=X_Forwarded_For,Content_length,X-Forwarded_Whatever_Else", 0},
    /* Expect */
    {"continue", "9110 10.1.1", H "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\n",
     "GET / host=a 1.1 length=1 keep continue", 0},
    {"other expectation", "9110 10.1.1", H "Expect: gold\r\n\r\n", "expect", 0},
    {"expectation twice", "9110 10.1.1", H "Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n",
     "expect", 0},
    {"expectation in 1.0", "9110 10.1.1", "GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n",
     "GET / 1.0 none close", 0},
    {"malformed beats expectation", "", H "Expect: gold\r\nContent-Length: x\r\n\r\n", "malformed",
     0},
};

static int span_print(char *text, size_t room, const char *before, const uint8_t *data,
                      dp_span span)
{
    return snprintf(text, room, "%s%.*s", before, (int)span.len,
                    (const char *)(const void *)(data + span.off));
}

/* One line for all that a test may want to see. */
static void describe(const uint8_t *data, const dp_request_head *head, char *text, size_t room)
{
    static const char *const FRAMING[] = {
        [DP_BODY_NONE] = "none", [DP_BODY_LENGTH] = "length", [DP_BODY_CHUNKED] = "chunked"};
    size_t at = 0;
    bool dropped = false;

    at += (size_t)span_print(text + at, room - at, "", data, head->method_span);
    at += (size_t)snprintf(text + at, room - at, "%s", head->method == 0 ? "*" : "");
    at += (size_t)span_print(text + at, room - at, " ", data, head->path);
    if (head->query.len > 0) {
        at += (size_t)span_print(text + at, room - at, " ", data, head->query);
    }
    if (head->host.len > 0) {
        at += (size_t)span_print(text + at, room - at, " host=", data, head->host);
    }
    if (head->host_name.len != head->host.len) {
        at += (size_t)span_print(text + at, room - at, " name=", data, head->host_name);
    }
    at += (size_t)snprintf(text + at, room - at, " 1.%u %s", head->minor, FRAMING[head->framing]);
    if (head->framing == DP_BODY_LENGTH) {
        at += (size_t)snprintf(text + at, room - at, "=%llu",
                               (unsigned long long)head->content_length);
    }
    at += (size_t)snprintf(text + at, room - at, "%s%s%s", head->keep_alive ? " keep" : " close",
                           head->expects_continue ? " continue" : "",
                           head->has_upgrade ? " upgrade" : "");
    for (uint32_t i = 0; i < head->field_count; i++) {
        if ((head->fields[i].flags & DP_FIELD_DROP) != 0) {
            at += (size_t)span_print(text + at, room - at, dropped ? "," : " drop=", data,
                                     head->fields[i].name);
            dropped = true;
        }
    }
}

static void check(const struct test_case *test, size_t step, bool low)
{
    static dp_request_head head;
    char how[64];
    char got[512];
    uint32_t len = 0;
    const uint8_t *const bytes = (const uint8_t *)test->bytes;
    int result = head_end_in_steps(bytes, case_len(test), &LIMITS, step, &len);

    snprintf(how, sizeof(how), "%s%s", step == 1 ? "byte by byte" : "whole", low ? ", low" : "");
    if (result == DP_OK && len != case_len(test)) {
        snprintf(got, sizeof(got), "ends at %u", len);
    } else if (result == DP_OK) {
        uint8_t *const data = low ? place_after_guard(bytes, len) : place_before_guard(bytes, len);
        memset(&head, 0xa5, sizeof(head));
        result = dp_request_parse(data, len, &LIMITS, &head);
        if (result == DP_OK) {
            result = dp_request_normalise(data, &head);
        }
        if (result == DP_OK) {
            describe(data, &head, got, sizeof(got));
        }
    }
    if (result != DP_OK) {
        snprintf(got, sizeof(got), "%s", result_word(result));
    }
    expect_text(test->name, test->section, how, got, test->expected);
}

/* The parser alone stays inside whatever it is given, and takes nothing that dp_head_end would not
 * have passed: inputs cut short, and inputs with one byte replaced. */
static void parse_anything(const struct test_case *test)
{
    static dp_request_head head;
    static const uint8_t STRANGE[] = {0, '\t', '\n', '\r', ' ', ':', '%', 0x7f, 0xff};
    const size_t len = case_len(test);

    for (size_t cut = 0; cut < len; cut++) {
        const uint8_t *const data = place_before_guard(test->bytes, cut);
        expect("a head cut short is refused", dp_request_parse(data, cut, &LIMITS, &head) != DP_OK);
    }
    for (size_t at = 0; at < len; at++) {
        for (size_t i = 0; i < sizeof(STRANGE); i++) {
            uint32_t scanned = 0;
            uint32_t found = 0;
            uint8_t *const data = place_before_guard(test->bytes, len);
            data[at] = STRANGE[i];
            const int result = dp_request_parse(data, len, &LIMITS, &head);
            expect("a verdict, and taken only if it is one head",
                   result < DP_OK || (dp_head_end(data, len, &LIMITS, &scanned, &found) == DP_OK &&
                                      found == len));
        }
    }
}

/* Every byte at every place of a long name and a long value: vectors and plain loops agree with
 * the table. */
static void check_every_byte(void)
{
    static const char START[] = "GET / HTTP/1.1\r\nHost: a\r\n";
    static dp_request_head head;
    char text[256];
    const int len = snprintf(text, sizeof(text), "%s%040d: %040d\r\nZ: z\r\n\r\n", START, 0, 0);
    const size_t name = sizeof(START) - 1;
    const size_t value = name + 42;

    for (size_t place = 0; place < 82; place++) {
        const size_t at = name + place;
        if (at == name + 40 || at == name + 41) { /* ": " */
            continue;
        }
        for (unsigned byte = 0; byte < 256; byte++) {
            uint8_t *const data = place_before_guard(text, (size_t)len);
            /* A name of letters or of digits: the vectors pass one and stop at the other. */
            memset(data + name, byte % 2 == 0 ? 'x' : '0', 40);
            data[at] = (uint8_t)byte;
            const bool good =
                at < value ? (dp_char_class[byte] & DP_CH_TOKEN) != 0 || (byte == ':' && at > name)
                           : (dp_char_class[byte] & DP_CH_TEXT) != 0;
            expect("a byte is taken where the grammar has it",
                   (dp_request_parse(data, (size_t)len, &LIMITS, &head) == DP_OK) == good);
        }
    }
}

static void check_fields(void)
{
    static const char HEAD[] =
        "GET / HTTP/1.1\r\nhOsT: a\r\nX-Long-Name-Of-A-Field-Beyond-Sixteen: "
        "v w\r\nX-Forwarded-Proto:https\r\n\r\n";
    static dp_request_head head;
    const size_t len = sizeof(HEAD) - 1;
    const uint8_t *const data = place_before_guard(HEAD, len);

    expect("fields are taken", dp_request_parse(data, len, &LIMITS, &head) == DP_OK);
    expect("count", head.field_count == 3 && head.head_len == len);
    expect("ids", head.fields[0].id == DP_F_HOST && head.fields[1].id == DP_F_OTHER &&
                      head.fields[2].id == DP_F_X_FORWARDED_PROTO);
    expect("name", head.fields[1].name.len == 37);
    expect("value",
           head.fields[1].value.len == 3 && memcmp(data + head.fields[1].value.off, "v w", 3) == 0);
    expect("last value", head.fields[2].value.len == 5 &&
                             memcmp(data + head.fields[2].value.off, "https", 5) == 0);
    expect("target", head.target.off == 4 && head.target.len == 1);
}

static void check_ids(void)
{
    static const struct {
        const char *name;
        unsigned id;
    } NAMES[] = {{"Host", DP_F_HOST},
                 {"Connection", DP_F_CONNECTION},
                 {"Content-Length", DP_F_CONTENT_LENGTH},
                 {"Transfer-Encoding", DP_F_TRANSFER_ENCODING},
                 {"TE", DP_F_TE},
                 {"Trailer", DP_F_TRAILER},
                 {"Upgrade", DP_F_UPGRADE},
                 {"Keep-Alive", DP_F_KEEP_ALIVE},
                 {"Proxy-Connection", DP_F_PROXY_CONNECTION},
                 {"Proxy", DP_F_PROXY},
                 {"Expect", DP_F_EXPECT},
                 {"Date", DP_F_DATE},
                 {"Server", DP_F_SERVER},
                 {"Forwarded", DP_F_FORWARDED},
                 {"X-Forwarded-For", DP_F_X_FORWARDED_FOR},
                 {"X-Forwarded-Proto", DP_F_X_FORWARDED_PROTO},
                 {"X-Forwarded-Host", DP_F_X_FORWARDED_HOST},
                 {"X-Forwarded-Port", DP_F_X_FORWARDED_PORT},
                 {"X-Request-ID", DP_F_X_REQUEST_ID},
                 {"traceparent", DP_F_TRACEPARENT},
                 {"HTTP2-Settings", DP_F_HTTP2_SETTINGS},
                 {"Max-Forwards", DP_F_MAX_FORWARDS},
                 {"User-Agent", DP_F_OTHER},
                 {"Hosts", DP_F_OTHER},
                 {"Content-Lengthy", DP_F_OTHER},
                 {"Content-Lengti", DP_F_OTHER},
                 {"xransfer-encoding", DP_F_OTHER}};
    static dp_response_head head;

    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
        char text[128];
        const char *const value = NAMES[i].id == DP_F_CONTENT_LENGTH      ? "1"
                                  : NAMES[i].id == DP_F_TRANSFER_ENCODING ? "chunked"
                                                                          : "a";
        const int len =
            snprintf(text, sizeof(text), "HTTP/1.1 200 OK\r\n%s: %s\r\n\r\n", NAMES[i].name, value);
        const uint8_t *const data = place_before_guard(text, (size_t)len);
        expect(NAMES[i].name, dp_response_parse(data, (size_t)len, &LIMITS, 0, &head) == DP_OK &&
                                  head.fields[0].id == NAMES[i].id);
    }
}

static void check_methods(void)
{
    static const char *const NAMES[] = {"GET",     "HEAD",  "POST",  "PUT",    "DELETE",
                                        "OPTIONS", "PATCH", "TRACE", "CONNECT"};
    for (unsigned i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
        const size_t len = strlen(NAMES[i]);
        expect(NAMES[i], dp_method_bit(NAMES[i], len) == 1u << i);
        expect("part of a method", dp_method_bit(NAMES[i], len - 1) == 0);
    }
}

int main(void)
{
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        check(&CASES[i], ROOM, false);
        check(&CASES[i], ROOM, true);
        check(&CASES[i], 1, false);
        parse_anything(&CASES[i]);
    }
    check_every_byte();
    check_fields();
    check_ids();
    check_methods();
    return finish("request heads");
}
