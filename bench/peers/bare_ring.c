/* A ring of 512-byte records between two processes with nothing around it: what the memory allows.
   Prints records/s at full speed, from the first record until the consumer has copied the last. */
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SLOT_BYTES = 512, CAPACITY = 4096, COUNT = 5000000 };
struct ring {
    _Alignas(128) uint64_t head;
    _Alignas(128) uint64_t tail;
    _Alignas(4096) unsigned char slots[CAPACITY][SLOT_BYTES];
};

int main(void)
{
    struct ring *ring = mmap(NULL, sizeof *ring, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ring == MAP_FAILED)
        return 1;
    memset(ring, 0, sizeof *ring);
    unsigned char record[SLOT_BYTES] = {0};
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    pid_t producer = fork();
    if (producer < 0)
        return 1;
    for (uint64_t at = 0, known = 0; at < COUNT;) {
        if (producer == 0) {
            if (at - known == CAPACITY && at - (known = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE)) == CAPACITY) {
                sched_yield();
                continue;
            }
            memcpy(record, &at, 8);
            memcpy(ring->slots[at % CAPACITY], record, SLOT_BYTES);
            __atomic_store_n(&ring->head, ++at, __ATOMIC_RELEASE);
        }
        else {
            if (at == known && at == (known = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE))) {
                sched_yield();
                continue;
            }
            memcpy(record, ring->slots[at % CAPACITY], SLOT_BYTES);
            uint64_t got;
            memcpy(&got, record, 8);
            if (got != at)
                return 2;
            __atomic_store_n(&ring->tail, ++at, __ATOMIC_RELEASE);
        }
    }
    if (producer == 0)
        _exit(0);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    int status;
    waitpid(producer, &status, 0);
    printf("%.0f\n", COUNT / ((double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9));
    return status != 0;
}
