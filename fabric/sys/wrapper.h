/* What bindgen reads: the parts of libfabric's interface that an RDM endpoint with messages and RMA needs. */
#include <rdma/fabric.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_rma.h>

/* The field has one name in C and two places in bindgen's eyes: 2.x puts it into an anonymous union. */
static inline void fi_hints_set_data_progress(struct fi_domain_attr *attr, enum fi_progress progress)
{
	attr->data_progress = progress;
}
