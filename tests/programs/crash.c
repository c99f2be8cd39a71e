// Ends by the signal that its argument names.
#include <signal.h>
#include <stdlib.h>
#include <string.h>

int main(int count, char **words) {
    const char *how = count > 1 ? words[1] : "";
    if (!strcmp(how, "abort")) abort();
    if (!strcmp(how, "fpe")) raise(SIGFPE);
    if (!strcmp(how, "segv")) *(volatile int *)8 = 1;
    return 0;
}
