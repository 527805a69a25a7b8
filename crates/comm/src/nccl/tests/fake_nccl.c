/* A libnccl.so.2 for tests: ranks are threads of one process, devices are `FakeDevice`s, which it reaches through the
   functions that `fake_bind` hands in. It does what NCCL does, on the streams that it is given, and can be told to fail, to
   hang or to report an error later. With LACKING defined it lacks a function; VERSION is what it says it is. */

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 22809
#endif

enum { SUCCESS = 0, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum { FAIL = 1, HANG = 2, LATER = 3 };

struct wires {
    void (*queue)(uintptr_t stream, void (*work)(void *), void *data);
    int (*read)(uintptr_t address, void *into, size_t bytes);
    int (*write)(uintptr_t address, const void *from, size_t bytes);
    int (*range)(uintptr_t address, uint64_t *start, uint64_t *bytes, uint64_t *device);
};

typedef struct { char internal[128]; } unique_id;

struct config {
    size_t size;
    unsigned magic, version;
    int blocking, cga, min_ctas, max_ctas;
    const char *net_name;
    int split_share;
};

/* What one rank brings to a collective. */
struct round {
    uint64_t number;
    int arrived, left;
    void **data;
    struct round *next;
};

struct letter {
    int from, to, taken;
    void *data;
    size_t bytes;
    struct letter *next;
};

struct clique {
    char id[128];
    int size, joined;
    struct round *rounds;
    struct letter *letters;
    struct clique *next;
};

struct comm {
    struct clique *clique;
    int rank, aborted, finalizing, pending, polls, later;
    uint64_t calls;
};

struct move { int sends, peer; uintptr_t memory; size_t bytes; };

struct job {
    struct comm *comm;
    const char *function;
    int kind, op, root, moves;
    uint64_t number;
    uintptr_t send, receive;
    size_t count;
    struct move list[64];
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct wires wires;
static struct clique *cliques;
static int ids, aborts, destroys;
static struct { char function[64]; int how, code; } fault;
static __thread char last_error[128];
static __thread struct job *open_job;
static __thread int depth;

void fake_bind(const struct wires *given) { wires = *given; }

void fake_misbehave(const char *function, int how, int code)
{
    snprintf(fault.function, sizeof fault.function, "%s", function);
    fault.how = how;
    fault.code = code;
}

int fake_aborts(void) { return aborts; }
int fake_destroys(void) { return destroys; }

static int told(const char *function, int how) { return fault.how == how && !strcmp(fault.function, function); }

static int begin(const char *function)
{
    if (!told(function, FAIL)) return SUCCESS;
    snprintf(last_error, sizeof last_error, "%s was told to fail", function);
    return fault.code;
}

int ncclGetVersion(int *version) { *version = VERSION; return begin("ncclGetVersion"); }

int ncclGetUniqueId(unique_id *id)
{
    int code = begin("ncclGetUniqueId");
    memset(id, 0, sizeof *id);
    pthread_mutex_lock(&mutex);
    snprintf(id->internal, sizeof id->internal, "clique %d", ids++);
    pthread_mutex_unlock(&mutex);
    return code;
}

const char *ncclGetErrorString(int code)
{
    return code == REMOTE_ERROR ? "remote process exited or there was a network error"
         : code == INVALID_USAGE ? "invalid usage" : "an error of the fake";
}

const char *ncclGetLastError(void *comm) { (void)comm; return last_error; }

int ncclCommInitRankConfig(void **out, int size, unique_id id, int rank, struct config *config)
{
    int code = begin("ncclCommInitRankConfig");
    if (!code && rank == 1) code = begin("ncclCommInitRankConfig of rank 1");
    if (code) return code;
    if (config->magic != 0xcafebeef || config->size != sizeof *config || config->blocking != 0
        || config->min_ctas != INT_MIN || config->split_share != INT_MIN || config->net_name) return INVALID_ARGUMENT;
    struct comm *comm = calloc(1, sizeof *comm);
    pthread_mutex_lock(&mutex);
    struct clique *clique = cliques;
    while (clique && memcmp(clique->id, id.internal, 128)) clique = clique->next;
    if (!clique) {
        clique = calloc(1, sizeof *clique);
        memcpy(clique->id, id.internal, 128);
        clique->size = size;
        clique->next = cliques;
        cliques = clique;
    }
    clique->joined += 1;
    comm->clique = clique;
    comm->rank = rank;
    pthread_mutex_unlock(&mutex);
    *out = comm;
    return IN_PROGRESS;
}

int ncclCommGetAsyncError(struct comm *comm, int *code)
{
    pthread_mutex_lock(&mutex);
    *code = SUCCESS;
    if (comm->clique->joined < comm->clique->size || told("join", HANG)) *code = IN_PROGRESS;
    /* The others have joined by then. */
    if (*code == SUCCESS && comm->rank == 1 && told("join of rank 1", FAIL)) *code = fault.code;
    if (comm->polls > 0) { comm->polls -= 1; *code = IN_PROGRESS; }
    if (comm->finalizing && comm->pending > 0) *code = IN_PROGRESS;
    if (comm->later > 0 && --comm->later == 0) {
        comm->later = 1;
        snprintf(last_error, sizeof last_error, "a peer has gone");
        *code = REMOTE_ERROR;
    }
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

int ncclCommFinalize(struct comm *comm) { comm->finalizing = 1; return IN_PROGRESS; }

#ifndef LACKING
int ncclCommDestroy(struct comm *comm)
{
    /* Never freed: the tests are short, and a use after this is to be told from a crash. */
    destroys += 1;
    return comm->finalizing ? SUCCESS : INVALID_USAGE;
}
#endif

int ncclCommAbort(struct comm *comm)
{
    pthread_mutex_lock(&mutex);
    aborts += 1;
    comm->aborted = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

static size_t width(int kind) { return kind == 1 ? 1 : kind == 9 ? 2 : kind == 2 || kind == 7 ? 4 : 8; }

static float widen(uint16_t x) { uint32_t bits = (uint32_t)x << 16; float f; memcpy(&f, &bits, 4); return f; }

static uint16_t narrow(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define FOLD(type, sum) do { \
    type *a = into; const type *b = from; \
    for (size_t i = 0; i < count; i++) \
        a[i] = op == 2 ? (b[i] > a[i] ? b[i] : a[i]) : op == 3 ? (b[i] < a[i] ? b[i] : a[i]) : (type)(sum); \
} while (0)

static void fold(void *into, const void *from, size_t count, int kind, int op)
{
    switch (kind) {
    case 1: FOLD(uint8_t, a[i] + b[i]); break;
    case 2: FOLD(int32_t, (uint32_t)a[i] + (uint32_t)b[i]); break;
    case 4: FOLD(int64_t, (uint64_t)a[i] + (uint64_t)b[i]); break;
    case 7: FOLD(float, a[i] + b[i]); break;
    case 8: FOLD(double, a[i] + b[i]); break;
    case 9: {
        /* Rounded at each addition, as elements that travel in bfloat16 are. */
        uint16_t *a = into;
        const uint16_t *b = from;
        for (size_t i = 0; i < count; i++) {
            float x = widen(a[i]), y = widen(b[i]);
            a[i] = narrow(op == 2 ? (y > x ? y : x) : op == 3 ? (y < x ? y : x) : x + y);
        }
    }
    }
}

static void divide(void *data, size_t count, int kind, int size)
{
    for (size_t i = 0; i < count; i++) {
        if (kind == 7) ((float *)data)[i] /= size;
        if (kind == 8) ((double *)data)[i] /= size;
        if (kind == 9) ((uint16_t *)data)[i] = narrow(widen(((uint16_t *)data)[i]) / size);
    }
}

/* Waits, with the lock, for others; says whether the communicator was aborted meanwhile. */
static int waits(struct comm *comm)
{
    if (!comm->aborted) pthread_cond_wait(&changed, &mutex);
    return comm->aborted;
}

static void collective(struct job *job, struct clique *clique)
{
    int size = clique->size, rank = job->comm->rank, scatter = !strcmp(job->function, "ncclReduceScatter");
    size_t bytes = job->count * width(job->kind), own = scatter ? bytes * size : bytes;
    void *mine = malloc(own ? own : 1);
    wires.read(job->send, mine, own);
    struct round *round = clique->rounds;
    while (round && round->number != job->number) round = round->next;
    if (!round) {
        round = calloc(1, sizeof *round);
        round->number = job->number;
        round->data = calloc(size, sizeof *round->data);
        round->next = clique->rounds;
        clique->rounds = round;
    }
    round->data[rank] = mine;
    round->arrived += 1;
    pthread_cond_broadcast(&changed);
    while (round->arrived < size) if (waits(job->comm)) return;
    if (!strcmp(job->function, "ncclAllGather")) {
        for (int peer = 0; peer < size; peer++) wires.write(job->receive + peer * bytes, round->data[peer], bytes);
    } else if (!strcmp(job->function, "ncclBroadcast")) {
        wires.write(job->receive, round->data[job->root], bytes);
    } else {
        size_t start = scatter ? rank * bytes : 0;
        void *result = malloc(bytes ? bytes : 1);
        memcpy(result, (char *)round->data[0] + start, bytes);
        for (int peer = 1; peer < size; peer++)
            fold(result, (char *)round->data[peer] + start, job->count, job->kind, job->op);
        if (job->op == 4) divide(result, job->count, job->kind, size);
        wires.write(job->receive, result, bytes);
        free(result);
    }
    round->left += 1;
    pthread_cond_broadcast(&changed);
    /* Nobody goes on before all have read. */
    while (round->left < size) if (waits(job->comm)) return;
    free(mine);
}

static void exchange(struct job *job, struct clique *clique)
{
    int rank = job->comm->rank, mine = 0;
    struct letter *sent[64];
    for (int i = 0; i < job->moves; i++) {
        struct move move = job->list[i];
        if (!move.sends) continue;
        struct letter *letter = calloc(1, sizeof *letter), **end = &clique->letters;
        *letter = (struct letter){ .from = rank, .to = move.peer, .data = malloc(move.bytes + 1), .bytes = move.bytes };
        wires.read(move.memory, letter->data, move.bytes);
        while (*end) end = &(*end)->next;
        *end = letter;
        sent[mine++] = letter;
    }
    pthread_cond_broadcast(&changed);
    for (int i = 0; i < job->moves; i++) {
        struct move move = job->list[i];
        if (move.sends) continue;
        struct letter *letter;
        for (;;) {
            letter = clique->letters;
            while (letter && (letter->taken || letter->from != move.peer || letter->to != rank)) letter = letter->next;
            if (letter) break;
            if (waits(job->comm)) return;
        }
        wires.write(move.memory, letter->data, letter->bytes < move.bytes ? letter->bytes : move.bytes);
        letter->taken = 1;
        pthread_cond_broadcast(&changed);
    }
    /* As NCCL's, a send is over once it was received. */
    for (int i = 0; i < mine; i++) while (!sent[i]->taken) if (waits(job->comm)) return;
}

static void run(void *data)
{
    struct job *job = data;
    struct comm *comm = job->comm;
    pthread_mutex_lock(&mutex);
    while ((told(job->function, HANG) || told(job->function, LATER)) && !comm->aborted) waits(comm);
    if (comm->aborted) { }
    else if (job->moves) exchange(job, comm->clique);
    else collective(job, comm->clique);
    comm->pending -= 1;
    pthread_mutex_unlock(&mutex);
    free(job);
}

static int queue(struct job job, uintptr_t stream)
{
    char here[64];
    snprintf(here, sizeof here, "%s of rank %d", job.function, job.comm->rank);
    int code = begin(job.function);
    if (!code) code = begin(here);
    if (code) return code;
    struct job *copy = malloc(sizeof *copy);
    *copy = job;
    pthread_mutex_lock(&mutex);
    /* Once the call itself has been seen through. */
    if (told(job.function, LATER)) job.comm->later = 5;
    copy->number = job.comm->calls++;
    job.comm->pending += 1;
    job.comm->polls = 2;
    pthread_mutex_unlock(&mutex);
    wires.queue(stream, run, copy);
    return IN_PROGRESS;
}

#define JOB(name) struct job job = { .comm = comm, .function = name, .kind = kind, .count = count }

int ncclAllReduce(uintptr_t send, uintptr_t receive, size_t count, int kind, int op, struct comm *comm, uintptr_t stream)
{
    JOB("ncclAllReduce");
    job.send = send, job.receive = receive, job.op = op;
    return queue(job, stream);
}

int ncclReduceScatter(uintptr_t send, uintptr_t receive, size_t count, int kind, int op, struct comm *comm, uintptr_t stream)
{
    JOB("ncclReduceScatter");
    job.send = send, job.receive = receive, job.op = op;
    return queue(job, stream);
}

int ncclAllGather(uintptr_t send, uintptr_t receive, size_t count, int kind, struct comm *comm, uintptr_t stream)
{
    JOB("ncclAllGather");
    job.send = send, job.receive = receive;
    return queue(job, stream);
}

int ncclBroadcast(uintptr_t send, uintptr_t receive, size_t count, int kind, int root, struct comm *comm, uintptr_t stream)
{
    JOB("ncclBroadcast");
    job.send = send, job.receive = receive, job.root = root;
    return queue(job, stream);
}

static int move(int sends, uintptr_t memory, size_t bytes, int peer, struct comm *comm, uintptr_t stream)
{
    if (!depth || (open_job && open_job->moves == 64)) return INVALID_USAGE;
    if (!open_job) open_job = calloc(1, sizeof *open_job);
    open_job->comm = comm;
    open_job->function = "ncclGroupEnd";
    open_job->number = stream;
    open_job->list[open_job->moves++] = (struct move){ sends, peer, memory, bytes };
    return SUCCESS;
}

int ncclSend(uintptr_t memory, size_t count, int kind, int peer, struct comm *comm, uintptr_t stream)
{
    int code = begin("ncclSend");
    return code ? code : move(1, memory, count * width(kind), peer, comm, stream);
}

int ncclRecv(uintptr_t memory, size_t count, int kind, int peer, struct comm *comm, uintptr_t stream)
{
    int code = begin("ncclRecv");
    return code ? code : move(0, memory, count * width(kind), peer, comm, stream);
}

int ncclGroupStart(void) { depth += 1; return SUCCESS; }

int ncclGroupEnd(void)
{
    depth -= 1;
    struct job *job = open_job;
    open_job = NULL;
    if (!job) return SUCCESS;
    int code = queue(*job, (uintptr_t)job->number);
    free(job);
    return code;
}

/* The driver: attributes as cuda.h numbers them. */
int cuPointerGetAttribute(void *out, int attribute, uint64_t address)
{
    uint64_t start, bytes, device;
    if (!wires.range(address, &start, &bytes, &device)) return 1;
    switch (attribute) {
    case 2: *(unsigned *)out = 2; return 0;
    case 8: *(unsigned *)out = 0; return 0;
    case 9: *(int *)out = (int)device; return 0;
    case 11: *(uint64_t *)out = start; return 0;
    case 12: *(uint64_t *)out = bytes; return 0;
    }
    return 1;
}
