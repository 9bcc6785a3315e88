from flowstone.web.handler import Handler


class ApprovalHandler(Handler):
    pass
