// Guess the number: a judge and players that do it in many ways.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int judge(const char *how) {
    int secret = 617, guess;
    for (int turn = 1; turn <= 20; turn++) {
        if (!strcmp(how, "crashes") && turn == 3) abort();
        if (!strcmp(how, "errs") && turn == 3) return 3;
        if (scanf("%d", &guess) != 1) {
            if (!strcmp(how, "fragile")) abort();
            return 1;
        }
        if (guess == secret) {
            puts("=");
            return 0;
        }
        puts(guess < secret ? "<" : ">");
    }
    puts("!");
    return 1;
}

// Reads all that comes and accepts it.
static int swallow(void) {
    static char buffer[65536];
    while (read(0, buffer, sizeof buffer) > 0) {}
    return 0;
}

static int play(const char *how) {
    int low = 1, high = 1000;
    char answer[9];
    if (!strcmp(how, "hangs")) for (;;) pause();
    if (!strcmp(how, "listens")) return scanf("%8s", answer);
    if (!strcmp(how, "leaves")) return 0;
    if (!strcmp(how, "floods")) for (;;) puts("1");
    for (int turn = 1;; turn++) {
        int guess = !strncmp(how, "wrong", 5) ? 1 : (low + high) / 2;
        if (turn == 4) {
            if (!strcmp(how, "crashes")) abort();
            if (!strcmp(how, "fails")) return 7;
            if (!strcmp(how, "spins")) for (;;) {}
            if (!strncmp(how, "closes", 6)) {
                close(1);
                if (!strcmp(how, "closes-and-crashes")) abort();
                if (!strcmp(how, "closes-and-ends")) return 0;
                for (;;) pause();
            }
        }
        printf("%d\n", guess);
        if (scanf("%8s", answer) != 1) return 9;
        if (*answer == '=' || *answer == '!') break;
        if (*answer == '<') low = guess + 1; else high = guess - 1;
    }
    if (strstr(how, "then-crashes")) abort();
    if (strstr(how, "then-spins")) for (;;) {}
    if (strstr(how, "then-listens")) {
        if (scanf("%8s", answer) != 1) abort();
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3) return 99;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(argv[1], "judge")) return judge(argv[2]);
    if (!strcmp(argv[1], "swallow")) return swallow();
    return play(argv[2]);
}
