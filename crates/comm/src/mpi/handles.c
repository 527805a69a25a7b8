/* What MPI's header offers as macros only, and so no binding generator can see. */

#include <mpi.h>

#if defined(OPEN_MPI) && OPEN_MPI
#include <mpi-ext.h>
#endif

void *mp_comm_in_place(void) { return (void *)MPI_IN_PLACE; }

MPI_Request mp_comm_request_null(void) { return MPI_REQUEST_NULL; }

int mp_comm_undefined(void) { return MPI_UNDEFINED; }

int mp_comm_max_error_string(void) { return MPI_MAX_ERROR_STRING; }

int mp_comm_max_library_version(void) { return MPI_MAX_LIBRARY_VERSION_STRING; }

int mp_comm_return_errors(MPI_Comm comm) { return MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN); }

int mp_comm_split_node(MPI_Comm comm, MPI_Comm *node)
{
    return MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, node);
}

/* Waits for one request; its error comes back as the result. */
int mp_comm_wait(MPI_Request *request, int *received_bytes)
{
    MPI_Status status;
    int code = MPI_Wait(request, &status);
    if (code == MPI_SUCCESS && received_bytes) {
        code = MPI_Get_count(&status, MPI_BYTE, received_bytes);
    }
    return code;
}

/* Tests one request; its error comes back as the result. */
int mp_comm_test(MPI_Request *request, int *done, int *received_bytes)
{
    MPI_Status status;
    int code = MPI_Test(request, done, &status);
    if (code == MPI_SUCCESS && *done && received_bytes) {
        code = MPI_Get_count(&status, MPI_BYTE, received_bytes);
    }
    return code;
}

int mp_comm_receive(void *buffer, int bytes, int from, int tag, MPI_Comm comm, int *received_bytes)
{
    MPI_Status status;
    int code = MPI_Recv(buffer, bytes, MPI_BYTE, from, tag, comm, &status);
    if (code == MPI_SUCCESS) {
        code = MPI_Get_count(&status, MPI_BYTE, received_bytes);
    }
    return code;
}

/* The largest tag, or -1 where the library does not say. */
int mp_comm_largest_tag(void)
{
    int *value = 0, found = 0;
    int code = MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &value, &found);
    return code == MPI_SUCCESS && found ? *value : -1;
}

/* User-level failure mitigation: 1 if the library offers it. */
int mp_comm_has_ulfm(void)
{
#if (defined(OMPI_HAVE_MPI_EXT_FTMPI) && OMPI_HAVE_MPI_EXT_FTMPI) || defined(MPIX_ERR_PROC_FAILED)
    return 1;
#else
    return 0;
#endif
}

/* Device pointers in MPI calls: 1 yes, 0 no, -1 where the library does not say. */
int mp_comm_is_cuda_aware(void)
{
#if defined(MPIX_CUDA_AWARE_SUPPORT)
    return MPIX_Query_cuda_support() ? 1 : 0;
#else
    return -1;
#endif
}
