/*
 * A libfabric that offers two Slingshot devices and nothing else, for machines that have none: fi_getinfo(3) with the devices and
 * their addresses, and endpoints that can be opened and have a name. An address is as fi_cxi(7) has it: the NIC's word with the
 * PID in its lowest 9 bits, then the VNI. CXI_TAKEN names a device whose PID 0 another process has, CXI_BROKEN one that does not
 * open. Nothing is ever sent.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>

enum { DEVICES = 2, PID_BITS = 9, PID_ANY = 511, FORMAT_CXI = 15, VNI = 10 };

static const char *const NAMES[DEVICES] = {"cxi0", "cxi1"};
static const uint32_t NICS[DEVICES] = {0x48b3, 0x48b4};

struct address {
	uint32_t word;
	uint16_t vni;
	uint16_t zero;
};

/* Whether the environment variable names the device. */
static int named(const char *variable, const char *device)
{
	const char *value = getenv(variable);
	return value && !strcmp(value, device);
}

void fi_freeinfo(struct fi_info *info)
{
	while (info) {
		struct fi_info *next = info->next;
		free(info->src_addr);
		free(info->fabric_attr->prov_name);
		free(info->fabric_attr->name);
		free(info->domain_attr->name);
		free(info->fabric_attr);
		free(info->domain_attr);
		free(info->ep_attr);
		free(info->rx_attr);
		free(info->tx_attr);
		free(info);
		info = next;
	}
}

static void *copy(const void *from, size_t size)
{
	void *to = calloc(1, size);
	if (from)
		memcpy(to, from, size);
	return to;
}

static char *text(const char *from)
{
	return from ? strdup(from) : NULL;
}

struct fi_info *fi_dupinfo(const struct fi_info *from)
{
	struct fi_info *info = copy(from, sizeof *info);
	info->next = NULL;
	info->fabric_attr = copy(from ? from->fabric_attr : NULL, sizeof *info->fabric_attr);
	info->domain_attr = copy(from ? from->domain_attr : NULL, sizeof *info->domain_attr);
	info->ep_attr = copy(from ? from->ep_attr : NULL, sizeof *info->ep_attr);
	info->rx_attr = copy(from ? from->rx_attr : NULL, sizeof *info->rx_attr);
	info->tx_attr = copy(from ? from->tx_attr : NULL, sizeof *info->tx_attr);
	info->fabric_attr->prov_name = text(info->fabric_attr->prov_name);
	info->fabric_attr->name = text(info->fabric_attr->name);
	info->domain_attr->name = text(info->domain_attr->name);
	info->src_addr = from && from->src_addr ? copy(from->src_addr, from->src_addrlen) : NULL;
	return info;
}

int fi_getinfo(uint32_t version, const char *node, const char *service, uint64_t flags, const struct fi_info *hints,
	       struct fi_info **found)
{
	const char *wanted = hints && hints->fabric_attr ? hints->fabric_attr->prov_name : NULL;
	struct fi_info **end = found;
	(void)version;
	(void)flags;
	*found = NULL;
	for (int at = 0; at < DEVICES; at++) {
		if ((wanted && strcmp(wanted, "cxi")) || (node && strcmp(node, NAMES[at])))
			continue;
		struct fi_info *info = fi_dupinfo(NULL);
		struct address *address = calloc(1, sizeof *address);
		address->word = NICS[at] << PID_BITS | (service ? (uint32_t)atoi(service) : PID_ANY);
		info->src_addr = address;
		info->src_addrlen = sizeof *address;
		info->addr_format = FORMAT_CXI;
		info->fabric_attr->prov_name = text("cxi");
		info->fabric_attr->name = text("cxi");
		info->domain_attr->name = text(NAMES[at]);
		info->domain_attr->mr_mode = FI_MR_ENDPOINT | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
		info->domain_attr->mr_key_size = 8;
		info->ep_attr->type = FI_EP_RDM;
		info->ep_attr->max_msg_size = UINT32_MAX;
		info->tx_attr->inject_size = 192;
		info->tx_attr->size = info->rx_attr->size = 1024;
		*end = info;
		end = &info->next;
	}
	return *found ? 0 : -FI_ENODATA;
}

/* Objects: each begins with its fid. */

static int close_object(struct fid *object)
{
	free(object);
	return 0;
}

static int bind_object(struct fid *object, struct fid *other, uint64_t flags)
{
	(void)object;
	(void)other;
	(void)flags;
	return 0;
}

struct queue {
	struct fid_cq cq;
	int descriptor;
};

static int close_queue(struct fid *object)
{
	close(((struct queue *)object)->descriptor);
	free(object);
	return 0;
}

static int control_queue(struct fid *object, int command, void *argument)
{
	if (command != FI_GETWAIT)
		return -FI_ENOSYS;
	*(int *)argument = ((struct queue *)object)->descriptor;
	return 0;
}

static ssize_t read_queue(struct fid_cq *queue, void *entries, size_t count)
{
	(void)queue;
	(void)entries;
	(void)count;
	return -FI_EAGAIN;
}

struct endpoint {
	struct fid_ep ep;
	struct address address;
	const char *device;
};

static int control_endpoint(struct fid *object, int command, void *argument)
{
	struct endpoint *endpoint = (struct endpoint *)object;
	uint32_t pid = endpoint->address.word & PID_ANY;
	int taken = named("CXI_TAKEN", endpoint->device);
	(void)argument;
	if (command != FI_ENABLE)
		return -FI_ENOSYS;
	if (named("CXI_BROKEN", endpoint->device))
		return -FI_EIO;
	if (pid == 0 && taken)
		return -FI_EADDRINUSE;
	if (pid == PID_ANY)
		pid = taken ? 1 : 0;
	endpoint->address.word = (endpoint->address.word & ~(uint32_t)PID_ANY) | pid;
	endpoint->address.vni = VNI;
	return 0;
}

static int name_of(struct fid *object, void *to, size_t *len)
{
	size_t room = *len;
	*len = sizeof(struct address);
	memcpy(to, &((struct endpoint *)object)->address, room < *len ? room : *len);
	return 0;
}

static ssize_t receive(struct fid_ep *endpoint, void *to, size_t len, void *descriptor, fi_addr_t from, void *context)
{
	(void)endpoint, (void)to, (void)len, (void)descriptor, (void)from, (void)context;
	return 0;
}

static struct fi_ops PLAIN = {.size = sizeof PLAIN, .close = close_object, .bind = bind_object};
static struct fi_ops OF_QUEUE = {.size = sizeof OF_QUEUE, .close = close_queue, .control = control_queue};
static struct fi_ops OF_ENDPOINT = {
	.size = sizeof OF_ENDPOINT, .close = close_object, .bind = bind_object, .control = control_endpoint};
static struct fi_ops_cq QUEUE = {.size = sizeof QUEUE, .read = read_queue};
static struct fi_ops_cm NAMING = {.size = sizeof NAMING, .getname = name_of};
static struct fi_ops_msg MESSAGES = {.size = sizeof MESSAGES, .recv = receive};

static int open_endpoint(struct fid_domain *domain, struct fi_info *info, struct fid_ep **opened, void *context)
{
	struct endpoint *endpoint = calloc(1, sizeof *endpoint);
	(void)domain;
	endpoint->ep.fid = (struct fid){.fclass = FI_CLASS_EP, .context = context, .ops = &OF_ENDPOINT};
	endpoint->ep.cm = &NAMING;
	endpoint->ep.msg = &MESSAGES;
	memcpy(&endpoint->address, info->src_addr, sizeof endpoint->address);
	for (int at = 0; at < DEVICES; at++)
		if (!strcmp(info->domain_attr->name, NAMES[at]))
			endpoint->device = NAMES[at];
	*opened = &endpoint->ep;
	return 0;
}

static int open_queue(struct fid_domain *domain, struct fi_cq_attr *attributes, struct fid_cq **opened, void *context)
{
	struct queue *queue = calloc(1, sizeof *queue);
	(void)domain;
	(void)attributes;
	queue->cq.fid = (struct fid){.fclass = FI_CLASS_CQ, .context = context, .ops = &OF_QUEUE};
	queue->cq.ops = &QUEUE;
	queue->descriptor = eventfd(0, EFD_CLOEXEC);
	*opened = &queue->cq;
	return 0;
}

static int open_book(struct fid_domain *domain, struct fi_av_attr *attributes, struct fid_av **opened, void *context)
{
	struct fid_av *book = calloc(1, sizeof *book);
	(void)domain;
	(void)attributes;
	book->fid = (struct fid){.fclass = FI_CLASS_AV, .context = context, .ops = &PLAIN};
	*opened = book;
	return 0;
}

static struct fi_ops_domain DOMAIN = {
	.size = sizeof DOMAIN, .av_open = open_book, .cq_open = open_queue, .endpoint = open_endpoint};

static int open_domain(struct fid_fabric *fabric, struct fi_info *info, struct fid_domain **opened, void *context)
{
	struct fid_domain *domain = calloc(1, sizeof *domain);
	(void)fabric;
	(void)info;
	domain->fid = (struct fid){.fclass = FI_CLASS_DOMAIN, .context = context, .ops = &PLAIN};
	domain->ops = &DOMAIN;
	*opened = domain;
	return 0;
}

static struct fi_ops_fabric FABRIC = {.size = sizeof FABRIC, .domain = open_domain};

int fi_fabric(struct fi_fabric_attr *attributes, struct fid_fabric **opened, void *context)
{
	struct fid_fabric *fabric = calloc(1, sizeof *fabric);
	(void)attributes;
	fabric->fid = (struct fid){.fclass = FI_CLASS_FABRIC, .context = context, .ops = &PLAIN};
	fabric->ops = &FABRIC;
	*opened = fabric;
	return 0;
}

uint32_t fi_version(void)
{
	return FI_VERSION(2, 0);
}

const char *fi_strerror(int code)
{
	return strerror(code);
}

char *fi_tostr(const void *data, enum fi_type type)
{
	static char none[] = "";
	(void)data;
	(void)type;
	return none;
}
