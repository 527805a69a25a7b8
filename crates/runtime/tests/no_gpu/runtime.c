/* A CUDA runtime and a cuBLAS without a GPU, preloaded before NVIDIA's: PyTorch's own CUDA library runs on it as it is. Memory
   of a device is memory of the host that lies apart, and kernels do nothing, so that every result is what memory held before,
   zeros at first. What is shown by it is all that happens on the host: which calls are made, in what order of initialisation, on
   which device, with which shapes, and what is refused.

   Copies are late: those between page-locked memory and a device, and within one, are queued on their stream and made when
   somebody waits for the stream or an event behind them, or has asked for it a few times. Until then memory is as it was.

   FAKE_DEVICES and FAKE_BYTES say how many devices there are, and how large. A copy whose direction is not where its ends
   lie, and one on another device than the thread's, end the process. Each device that a thread makes a context on is told on
   standard error, and each mode in which products are asked for; with FAKE_STREAMS=1 also the priority of each stream. The layouts are those of CUDA 13's cuda_runtime_api.h. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_MEMORY = 2, INVALID_DEVICE = 101, INVALID_HANDLE = 400, NOT_READY = 600 };
enum { TO_DEVICE = 1, TO_HOST = 2, WITHIN = 3, BY_ADDRESS = 4 };
enum { DEVICES = 8, HOST = DEVICES, WITHOUT_TIME = 2, LANES = 4096, PATIENCE = 3 };

#define ARENA ((size_t)1 << 40)
#define PAGE ((size_t)4096)

/* Blocks of a device, or of the host's page-locked memory: each a page that holds its length, and its bytes. */
struct arena { char *start; size_t next, used; };

/* What a stream is to do: to copy, to fill, or to wait for what another has queued by then. */
struct work {
    void *to;
    const void *from;
    void *own;
    size_t bytes;
    int byte, lane;
    uint64_t mark;
    struct work *next;
};

/* A stream. The first ones are the default streams of the devices; the others are known by their number. */
struct lane { struct work *first, *last; uint64_t queued, done; };

struct event { unsigned flags; int lane, asked; uint64_t mark; };

static struct arena arenas[DEVICES + 1];
static struct lane lanes[LANES];
static int streams = DEVICES;
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static atomic_int contexts[DEVICES];
static __thread int current, last;

static size_t told(const char *name, size_t otherwise)
{
    const char *text = getenv(name);
    return text ? (size_t)strtoull(text, NULL, 10) : otherwise;
}

static int devices(void) { return (int)told("FAKE_DEVICES", 1); }
static size_t capacity(void) { return told("FAKE_BYTES", (size_t)32 << 30); }

static int failed(int code) { return last = code; }

/* What needs a context makes one on the thread's device, as the runtime does. */
static void use(const char *function)
{
    if (!atomic_exchange(&contexts[current], 1)) fprintf(stderr, "context on device %d by %s\n", current, function);
}

static int allocate(void **out, size_t bytes, int where)
{
    struct arena *arena = &arenas[where];
    size_t room = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
    *out = NULL;
    if (!bytes) return SUCCESS;
    pthread_mutex_lock(&mutex);
    int fits = where == HOST || arena->used + bytes <= capacity();
    if (fits && !arena->start) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        arena->start = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, flags, -1, 0);
    }
    if (fits) {
        char *block = arena->start + arena->next;
        memcpy(block, &bytes, sizeof bytes);
        *out = block + PAGE;
        arena->next += room;
        arena->used += bytes;
    }
    pthread_mutex_unlock(&mutex);
    return fits ? SUCCESS : failed(NO_MEMORY);
}

static int where(const void *address)
{
    for (int i = 0; i <= HOST; i++) {
        const char *start = arenas[i].start;
        if (start && (const char *)address >= start && (const char *)address < start + ARENA) return i;
    }
    return -1;
}

static int release(void *memory)
{
    int found = memory ? where(memory) : -1;
    if (!memory) return SUCCESS;
    if (found < 0) return failed(INVALID_VALUE);
    size_t bytes;
    memcpy(&bytes, (char *)memory - PAGE, sizeof bytes);
    pthread_mutex_lock(&mutex);
    arenas[found].used -= bytes;
    pthread_mutex_unlock(&mutex);
    madvise(memory, (bytes + PAGE - 1) / PAGE * PAGE, MADV_DONTNEED);
    return SUCCESS;
}

/* Does what a stream was told before a mark, and what that waits for. */
static void run(int number, uint64_t mark)
{
    struct lane *lane = &lanes[number];
    while (lane->done < mark) {
        struct work *work = lane->first;
        lane->first = work->next;
        lane->done += 1;
        if (work->mark) run(work->lane, work->mark);
        else if (work->from) memmove(work->to, work->from, work->bytes);
        else memset(work->to, work->byte, work->bytes);
        free(work->own);
        free(work);
    }
}

static void run_all(void)
{
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < LANES; i++) run(i, lanes[i].queued);
    pthread_mutex_unlock(&mutex);
}

static void queue(int number, struct work given)
{
    struct lane *lane = &lanes[number];
    struct work *work = malloc(sizeof *work);
    *work = given;
    if (lane->first) lane->last->next = work;
    else lane->first = work;
    lane->last = work;
    lane->queued += 1;
}

static int lane_of(void *stream) { return stream ? (int)(uintptr_t)stream : current; }

static void wait_for(int number)
{
    pthread_mutex_lock(&mutex);
    run(number, lanes[number].queued);
    pthread_mutex_unlock(&mutex);
}

static int copy(void *to, const void *from, size_t bytes, int kind, void *stream)
{
    use("a copy");
    int target = where(to), source = where(from), on[2] = { target >= 0 && target < HOST, source >= 0 && source < HOST };
    if (!bytes) return SUCCESS;
    int right = kind == TO_DEVICE ? on[0] && !on[1] : kind == TO_HOST ? !on[0] && on[1] : kind == WITHIN ? on[0] && on[1]
                                                                                                     : kind == BY_ADDRESS;
    if (!right || (on[0] && target != current) || (on[1] && source != current)) {
        fprintf(stderr, "a wrong copy: kind %d of %zu bytes to place %d from place %d on device %d\n", kind, bytes, target,
                source, current);
        abort();
    }
    struct work work = { .to = to, .from = from, .bytes = bytes };
    pthread_mutex_lock(&mutex);
    if (source < 0) {
        /* Of memory that is not page-locked, the host's bytes are taken before the call returns. */
        work.from = work.own = malloc(bytes);
        memcpy(work.own, from, bytes);
    }
    queue(lane_of(stream), work);
    /* And to such memory, the copy is over by then. */
    if (target < 0) run(lane_of(stream), lanes[lane_of(stream)].queued);
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

int cudaGetDeviceCount(int *count) { *count = devices(); return SUCCESS; }
int cudaGetDevice(int *device) { *device = current; return SUCCESS; }

int cudaSetDevice(int device)
{
    if (device < 0 || device >= devices()) return failed(INVALID_DEVICE);
    current = device;
    use("cudaSetDevice");
    return SUCCESS;
}

int cudaDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaGetLastError(void) { int code = last; last = SUCCESS; return code; }
int cudaPeekAtLastError(void) { return last; }
int cudaDeviceSynchronize(void) { use("cudaDeviceSynchronize"); run_all(); return SUCCESS; }
int cudaDeviceCanAccessPeer(int *can) { *can = 0; return SUCCESS; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return SUCCESS; }

int cudaDeviceGetAttribute(int *value, int attribute)
{
    static const struct { int attribute, value; } known[] = {
        { 1, 1024 }, { 5, 0x7fffffff }, { 8, 49152 }, { 10, 32 }, { 16, 132 }, { 39, 2048 }, { 75, 8 }, { 81, 233472 },
        { 97, 232448 },
    };
    *value = 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) if (known[i].attribute == attribute) *value = known[i].value;
    return SUCCESS;
}

/* Of the generation before Hopper, for which PyTorch attends by kernels of its own: cuDNN, which it prefers there, wants a GPU. */
int cudaGetDeviceProperties(char *properties)
{
    static const struct { int at, value; } words[] = {
        { 304, 65536 }, { 308, 32 }, { 320, 1024 }, { 324, 1024 }, { 328, 1024 }, { 332, 64 }, { 336, 0x7fffffff },
        { 340, 65535 }, { 344, 65535 }, { 360, 8 }, { 384, 132 }, { 596, 50 << 20 }, { 604, 2048 }, { 632, 65536 },
        { 688, 32 },
    };
    static const struct { int at; size_t value; } sizes[] = {
        { 296, 49152 }, { 368, 512 }, { 624, 233472 }, { 672, 232448 },
    };
    size_t total = capacity();
    memset(properties, 0, 1008);
    strcpy(properties, "no GPU");
    memcpy(properties + 288, &total, sizeof total);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) memcpy(properties + words[i].at, &words[i].value, sizeof(int));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) memcpy(properties + sizes[i].at, &sizes[i].value, sizeof(size_t));
    return SUCCESS;
}

int cudaMemGetInfo(size_t *free, size_t *total)
{
    use("cudaMemGetInfo");
    *total = capacity();
    *free = *total - arenas[current].used;
    return SUCCESS;
}

int cudaMalloc(void **out, size_t bytes) { use("cudaMalloc"); return allocate(out, bytes, current); }
int cudaFree(void *memory) { run_all(); return release(memory); }
int cudaHostAlloc(void **out, size_t bytes) { use("cudaHostAlloc"); return allocate(out, bytes, HOST); }
int cudaFreeHost(void *memory) { run_all(); return release(memory); }

int cudaPointerGetAttributes(int *attributes, const void *address)
{
    int found = where(address);
    memset(attributes, 0, 88);
    attributes[0] = found < 0 ? 0 : found == HOST ? 1 : 2;
    attributes[1] = found < 0 ? -2 : found % HOST;
    return SUCCESS;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream)
{
    return copy(to, from, bytes, kind, stream);
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind)
{
    int code = copy(to, from, bytes, kind, NULL);
    wait_for(current);
    return code;
}

int cudaMemsetAsync(void *to, int byte, size_t bytes, void *stream)
{
    use("a fill");
    pthread_mutex_lock(&mutex);
    queue(lane_of(stream), (struct work){ .to = to, .byte = byte, .bytes = bytes });
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

int cudaMemset(void *to, int byte, size_t bytes) { return cudaMemsetAsync(to, byte, bytes, NULL); }
int cudaMemcpyToSymbol(void) { return SUCCESS; }

int cudaGetSymbolAddress(void **out)
{
    static char symbol[1 << 16];
    *out = symbol;
    return SUCCESS;
}

int cudaStreamCreateWithPriority(void **out, unsigned flags, int priority)
{
    (void)flags;
    use("a stream");
    pthread_mutex_lock(&mutex);
    if (told("FAKE_STREAMS", 0)) fprintf(stderr, "stream %d has priority %d\n", streams, priority);
    *out = (void *)(uintptr_t)streams++;
    pthread_mutex_unlock(&mutex);
    return streams < LANES ? SUCCESS : failed(NO_MEMORY);
}

int cudaStreamDestroy(void) { return SUCCESS; }
int cudaStreamSynchronize(void *stream) { wait_for(lane_of(stream)); return SUCCESS; }
int cudaStreamQuery(void *stream) { wait_for(lane_of(stream)); return SUCCESS; }

int cudaStreamWaitEvent(void *stream, struct event *event)
{
    use("cudaStreamWaitEvent");
    pthread_mutex_lock(&mutex);
    if (event->mark) queue(lane_of(stream), (struct work){ .lane = event->lane, .mark = event->mark });
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return SUCCESS; }
int cudaStreamGetCaptureInfo(void *stream, int *status) { (void)stream; *status = 0; return SUCCESS; }
int cudaThreadExchangeStreamCaptureMode(void) { return SUCCESS; }

int cudaEventCreateWithFlags(struct event **out, unsigned flags)
{
    use("an event");
    *out = calloc(1, sizeof **out);
    (*out)->flags = flags;
    return SUCCESS;
}

int cudaEventCreate(struct event **out) { return cudaEventCreateWithFlags(out, 0); }
int cudaEventDestroy(struct event *event) { free(event); return SUCCESS; }

int cudaEventRecord(struct event *event, void *stream)
{
    use("cudaEventRecord");
    pthread_mutex_lock(&mutex);
    event->lane = lane_of(stream);
    event->mark = lanes[event->lane].queued;
    event->asked = 0;
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

int cudaEventRecordWithFlags(struct event *event, void *stream) { return cudaEventRecord(event, stream); }

int cudaEventSynchronize(struct event *event)
{
    use("cudaEventSynchronize");
    pthread_mutex_lock(&mutex);
    run(event->lane, event->mark);
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

int cudaEventQuery(struct event *event)
{
    use("cudaEventQuery");
    pthread_mutex_lock(&mutex);
    int done = lanes[event->lane].done >= event->mark;
    if (!done && event->asked++ == PATIENCE) run(event->lane, event->mark), done = 1;
    pthread_mutex_unlock(&mutex);
    return done ? SUCCESS : failed(NOT_READY);
}

int cudaEventElapsedTime(float *milliseconds, struct event *from, struct event *to)
{
    if ((from->flags | to->flags) & WITHOUT_TIME) return failed(INVALID_HANDLE);
    *milliseconds = 1;
    return SUCCESS;
}


int cudaFuncGetAttributes(int *attributes)
{
    memset(attributes, 0, 144);
    attributes[6] = 1024;
    /* Compiled for that generation. */
    attributes[8] = attributes[9] = 80;
    return SUCCESS;
}

int cudaFuncSetAttribute(void) { return SUCCESS; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count) { *count = 2; return SUCCESS; }
int cudaLaunchKernelExC(void) { use("a kernel"); return SUCCESS; }
int __cudaGetKernel(void **out) { *out = &current; return SUCCESS; }
int __cudaLaunchKernel(void) { use("a kernel"); return SUCCESS; }

int cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version, unsigned long long flags, int *result)
{
    (void)version, (void)flags;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    *out = driver ? dlsym(driver, name) : NULL;
    if (result) *result = *out ? 0 : 1;
    return SUCCESS;
}

/* For the driver beside it. */
int fake_has_context(int device) { return atomic_load(&contexts[device]); }

int fake_range(const void *address, uint64_t *start, uint64_t *bytes, int *device)
{
    int found = where(address);
    if (found < 0 || found == HOST) return 0;
    *start = (uint64_t)(uintptr_t)arenas[found].start;
    *bytes = ARENA;
    *device = found;
    return 1;
}

/* An MPI library of the host takes these devices' pointers, as they are the host's, too. */
int MPIX_Query_cuda_support(void) { return told("FAKE_AWARE", 0) != 0; }

/* cuBLAS: handles of one kind, and products that leave their results as they are. */

static int handle(void **out) { static int any; *out = &any; return SUCCESS; }

int cublasCreate_v2(void **out) { use("cuBLAS"); return handle(out); }
int cublasLtMatmulDescCreate(void **out) { return handle(out); }
int cublasLtMatmulPreferenceCreate(void **out) { return handle(out); }
int cublasLtMatrixLayoutCreate(void **out) { return handle(out); }
int cublasGetMathMode(void *of, int *mode) { (void)of; *mode = 0; return SUCCESS; }
/* How products of single precision may be computed: 0, in single precision, and 3, in TF32. Each is told the first time. */
int cublasSetMathMode(void *of, int mode)
{
    static atomic_int seen[16];
    (void)of;
    if (!atomic_exchange(&seen[mode & 15], 1)) fprintf(stderr, "products in mode %d\n", mode & 15);
    return SUCCESS;
}

int cublasGetPointerMode_v2(void *of, int *mode) { (void)of; *mode = 0; return SUCCESS; }
size_t cublasLtGetVersion(void) { return 130100; }

int cublasLtMatmulAlgoGetHeuristic(void *of, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted,
                                   void *found, int *count)
{
    (void)of, (void)product, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)wanted, (void)found;
    *count = 1;
    return SUCCESS;
}

#define NOTHING(name) int name(void) { return SUCCESS; }
NOTHING(cublasDestroy_v2)
NOTHING(cublasSetPointerMode_v2)
NOTHING(cublasSetStream_v2)
NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSgemm_v2)
NOTHING(cublasDgemm_v2)
NOTHING(cublasGemmEx)
NOTHING(cublasSgemmEx)
NOTHING(cublasGemmStridedBatchedEx)
NOTHING(cublasSgemmStridedBatched)
NOTHING(cublasDgemmStridedBatched)
NOTHING(cublasSgemv_v2)
NOTHING(cublasDgemv_v2)
NOTHING(cublasSdot_v2)
NOTHING(cublasDdot_v2)
NOTHING(cublasDotEx)
NOTHING(cublasLtMatmul)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
