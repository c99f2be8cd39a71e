/* A C host with SIGPIPE as every C program has it: deadly. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

int cofferdam_test_run(const char *command);
int cofferdam_test_relay(const char *command);
int cofferdam_test_late_kill(const char *command);

static void expect(const char *what, int got, int wanted) {
    if (got != wanted) {
        printf("%s: %d instead of %d\n", what, got, wanted);
        exit(1);
    }
}

int main(void) {
    /* Whoever started us may ignore it, and that would be inherited. */
    signal(SIGPIPE, SIG_DFL);
    expect("reads all", cofferdam_test_run("test $(wc -c) = 1000000 && exit 3"), 3);
    expect("closes its input", cofferdam_test_run("exec <&-; exit 4"), 4);
    expect("reads one byte", cofferdam_test_run("head -c 1 >/dev/null; exit 5"), 5);
    expect("closes everything", cofferdam_test_run("exec <&- >&- 2>&-; exit 6"), 6);
    expect("dies of SIGPIPE itself", cofferdam_test_run("kill -PIPE $$"), 1000 + SIGPIPE);
    expect("relayed to nobody", cofferdam_test_relay("head -c 300000 /dev/zero; exit 7"), 7);
    expect("killed too late", cofferdam_test_late_kill("exit 8"), 8);
    struct sigaction now;
    sigaction(SIGPIPE, NULL, &now);
    expect("SIGPIPE is still deadly", now.sa_handler == SIG_DFL, 1);
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    expect("and not blocked", sigismember(&mask, SIGPIPE), 0);
    puts("\nhost: done");
    return 0;
}
