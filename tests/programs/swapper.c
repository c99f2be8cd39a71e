/* Swaps /tmp/x/y between a file, links that lead out, a FIFO and a directory as fast as it
 * can. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static void fill(const char *name) {
    int file = open(name, O_CREAT | O_WRONLY, 0644);
    if (write(file, "inside", 6) != 6)
        _exit(1);
    close(file);
}

int main(void) {
    mkdir("/tmp/x", 0755);
    if (chdir("/tmp/x") != 0)
        return 1;
    mkdir("d", 0755);
    fill("d/inner");
    fill("f");
    mkfifo("p", 0644);
    if (symlink("/secret/file", "l") != 0 || symlink("/secret", "m") != 0 || symlink("../../../../../../secret/file", "n") != 0)
        return 1;
    for (;;) {
        const char *names[] = {"f", "l", "p", "m", "d", "n"};
        for (int i = 0; i < 6; i++) {
            rename(names[i], "y");
            rename("y", names[i]);
        }
    }
}
